//! How connections are accepted: how many there may be, and by which worker.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::{
    clients::{Client, get_request},
    harness::{Crossfade, eventually},
    routes::Route,
    site::{Site, rejected},
};

/// Connects and asks. `None`: turned away.
async fn taken(source: [u8; 4], listen: SocketAddr) -> Option<Client> {
    let mut client = Client::connect_from(IpAddr::V4(Ipv4Addr::from(source)), listen).await;
    client.exchange(&get_request("/", &[])).await.ok().map(|_| client)
}

const HERE: [u8; 4] = [127, 0, 0, 1];
const THERE: [u8; 4] = [127, 0, 0, 2];

/// Goes on until `clients` are as many as wanted: the end of a connection is counted a moment later.
async fn fill(clients: &mut Vec<Client>, wanted: usize, listen: SocketAddr) {
    while clients.len() < wanted {
        clients.push(eventually("there is room", async || taken(HERE, listen).await).await);
    }
}

async fn reload(crossfade: &Crossfade, nth: usize, server: &str, route: &Route) {
    crossfade.rewrite(&format!("[server]\n{server}"), &route.to_string());
    eventually("the file is read again", async || {
        let log = crossfade.log();
        (log.iter().filter(|line| line.contains("Configuration reloaded")).count() == nth).then_some(())
    })
    .await;
}

// Limits

#[tokio::test]
async fn max_connections_is_live_and_never_more_than_there_are_descriptors_for() {
    let site = Site::start().await;
    let route = site.route().unchecked();
    let crossfade = Crossfade::start_with_descriptors(80, &route.to_string()).await;
    let mut clients: Vec<Client> = Vec::new();
    for (nth, (wanted, there_may_be)) in [(5, 5), (7, 7), (50_000, 10), (3, 3), (4, 4)].into_iter().enumerate() {
        reload(&crossfade, nth + 1, &format!("max_connections = {wanted}"), &route).await;
        // Who is there stays, whatever the limit is now.
        for client in &mut clients {
            client.get("/", &[]).await;
        }
        if nth == 3 {
            assert!(taken(HERE, route.listen).await.is_none());
            clients.clear();
        }
        fill(&mut clients, there_may_be, route.listen).await;
        let before = rejected(&crossfade.admin, "max_connections").await;
        for _ in 0..3 {
            assert!(taken(HERE, route.listen).await.is_none(), "{wanted}");
        }
        assert_eq!(rejected(&crossfade.admin, "max_connections").await, before + 3, "{wanted}");
    }
    // It was said at the start, and again when it became so again.
    let said = crossfade.log().iter().filter(|line| line.contains("max_connections=10")).count();
    assert_eq!(said, 2, "{:#?}", crossfade.log());
}

#[tokio::test]
async fn a_client_that_has_its_connections_is_turned_away_and_others_are_not() {
    let site = Site::start().await;
    let route = site.route().unchecked();
    let crossfade = Crossfade::start_with("[server]\nmax_connections_per_client = 2", &route.to_string()).await;
    let mut clients = Vec::new();
    fill(&mut clients, 2, route.listen).await;
    for _ in 0..3 {
        assert!(taken(HERE, route.listen).await.is_none());
    }
    let (one, other) = (taken(THERE, route.listen).await, taken(THERE, route.listen).await);
    assert!(one.is_some() && other.is_some() && taken(THERE, route.listen).await.is_none());
    assert_eq!(rejected(&crossfade.admin, "max_connections_per_client").await, 4);
    assert_eq!(rejected(&crossfade.admin, "max_connections").await, 0);
    for client in &mut clients {
        client.get("/", &[]).await;
    }
    clients.pop();
    fill(&mut clients, 2, route.listen).await;

    reload(&crossfade, 1, "max_connections_per_client = 3", &route).await;
    fill(&mut clients, 3, route.listen).await;
    assert!(taken(HERE, route.listen).await.is_none());
    reload(&crossfade, 2, "", &route).await;
    for _ in 0..5 {
        clients.push(taken(HERE, route.listen).await.expect("there is no limit any more"));
    }
}
