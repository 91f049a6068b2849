//! How connections are accepted: how many there may be, and by which worker.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures::future::join_all;
use loadtest::origin::TcpOrigin;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use crate::{
    clients::{Client, get_request},
    harness::{Crossfade, configuration, eventually, free_address},
    routes::Route,
    site::{RawOrigin, Site, any_port, rejected, reset, soon},
    tcp::label,
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

// Workers

/// A metric of each worker, by name.
async fn of_workers(crossfade: &Crossfade, name: &str) -> Vec<u64> {
    let metrics = crossfade.admin.text("/metrics").await;
    let label = format!("{name}{{worker=");
    let values = metrics.lines().filter(|line| line.starts_with(&label));
    values.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

/// Open connections of each worker, once they are `wanted` in all.
async fn open_of_workers(crossfade: &Crossfade, wanted: u64) -> Vec<u64> {
    eventually(&format!("{wanted} are open"), async || {
        let open = of_workers(crossfade, "crossfade_client_connections").await;
        (open.iter().sum::<u64>() == wanted).then_some(open)
    })
    .await
}

/// What docs/operating.md promises for connections that do not end.
#[track_caller]
fn assert_even(open: &[u64]) {
    let (least, most) = (*open.iter().min().unwrap(), *open.iter().max().unwrap());
    assert!(most <= least + (least / 8).max(4), "{open:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_last_are_spread_evenly_over_the_workers() {
    let python = TcpOrigin::start("python", any_port()).await.unwrap();
    let bus = Route::tcp(python.address(), free_address()).unchecked();
    let site = Site::start().await;
    let shop = site.route().unchecked();
    let crossfade = Crossfade::start_with("[server]\nworkers = 4", &format!("{bus}{shop}")).await;
    let (mut lines, mut kept) = (Vec::new(), Vec::new());
    for wanted in [64, 1_000] {
        // Many at a time, as after a restart of whatever was there before.
        while lines.len() + kept.len() < wanted {
            let more = join_all((0..if wanted == 64 { 8 } else { 117 }).map(|_| TcpStream::connect(bus.listen))).await;
            lines.extend(more.into_iter().map(Result::unwrap));
            if kept.len() < 64 && wanted > 64 {
                kept.push(Client::connect(shop.listen).await);
            }
        }
        for line in lines.iter_mut().step_by(7) {
            assert_eq!(label(line).await, "python");
        }
        for client in &mut kept {
            client.get("/", &[]).await;
        }
        let open = open_of_workers(&crossfade, (lines.len() + kept.len()) as u64).await;
        eprintln!("{open:?}, handed over {:?}", of_workers(&crossfade, "crossfade_handed_over_total").await);
        assert_eq!(open.len(), 4);
        assert_even(&open);
    }
    drop((lines, kept));
    open_of_workers(&crossfade, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_come_and_go_stay_where_they_were_accepted() {
    const CLIENTS: usize = 32;
    const EACH: usize = 50;
    let site = Site::start().await;
    let route = site.route().unchecked();
    let crossfade = Crossfade::start_with("[server]\nworkers = 4", &route.to_string()).await;
    let asking = (0..CLIENTS).map(|_| {
        let listen = route.listen;
        tokio::spawn(async move {
            for _ in 0..EACH {
                assert!(taken(HERE, listen).await.is_some());
            }
        })
    });
    for client in asking.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let handed_over = of_workers(&crossfade, "crossfade_handed_over_total").await;
    eprintln!("{handed_over:?} of {}", CLIENTS * EACH);
    // Some at the start, as long as nothing has been closed.
    assert!(handed_over.iter().sum::<u64>() < (CLIENTS * EACH / 20) as u64, "{handed_over:?}");
    open_of_workers(&crossfade, 0).await;
}

#[tokio::test]
async fn a_second_instance_does_not_share_the_port() {
    let site = Site::start().await;
    let route = site.route().unchecked();
    let mut crossfade = Crossfade::start_with("[server]\nworkers = 3", &route.to_string()).await;
    for workers in [1, 3] {
        // Nothing of it is the same but the address: not the state file either.
        let (dir, admin) = (TempDir::new().unwrap(), free_address());
        let more = format!("[server]\nworkers = {workers}");
        fs::write(dir.path().join("crossfade.toml"), configuration(admin, &more, &route.to_string())).unwrap();
        let refused = Crossfade::try_start_in(dir, admin).await.err().expect("it shares the port");
        assert_eq!(refused.code, Some(1), "{}", refused.said);
        assert!(refused.said.contains(&format!("cannot listen on {}; stop what uses it", route.listen)), "{refused:?}");
        for _ in 0..20 {
            assert!(taken(HERE, route.listen).await.is_some());
        }
    }
    // And afterwards it is free at once.
    crossfade.kill_and_restart().await;
    assert!(taken(HERE, route.listen).await.is_some());
}

// Who has not spoken yet

/// The server's side of a client's connection to `listen`, as the system has it.
#[derive(Debug, PartialEq)]
enum Side {
    Accepted,
    /// Until it speaks.
    KeptBack,
    Waiting,
}

fn side(client: &TcpStream, listen: SocketAddr) -> Option<Side> {
    let hex = |port: u16| format!("0100007F:{port:04X}");
    let (local, remote) = (hex(listen.port()), hex(client.local_addr().unwrap().port()));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    let row = rows.into_iter().find(|row| row[1] == local && row[2] == remote)?;
    // The state, and the inode, which it has as soon as it is accepted.
    match (row[3], row[9]) {
        ("03", _) => Some(Side::KeptBack),
        (_, "0") => Some(Side::Waiting),
        _ => Some(Side::Accepted),
    }
}

async fn until(wanted: Side, client: &TcpStream, listen: SocketAddr) {
    eventually("it gets there", async || (side(client, listen).as_ref() == Some(&wanted)).then_some(())).await;
}

/// One that is kept back, and since when: the workers have begun a moment after it is said.
async fn kept_back(listen: SocketAddr) -> (TcpStream, Instant) {
    eventually("who says nothing is kept back", async || {
        let before = Instant::now();
        let silent = TcpStream::connect(listen).await.unwrap();
        (side(&silent, listen) == Some(Side::KeptBack)).then_some((silent, before))
    })
    .await
}

#[tokio::test]
async fn who_says_nothing_is_kept_back_for_a_second_and_then_has_its_time() {
    let site = Site::start().await;
    let route = site.route().unchecked().table("[route.timeouts]\nrequest_header = \"2s\"");
    let _crossfade = Crossfade::start_with("[server]\nworkers = 2", &route.to_string()).await;
    let (mut silent, started) = kept_back(route.listen).await;
    // It concerns nobody else.
    for _ in 0..20 {
        assert!(taken(HERE, route.listen).await.is_some());
    }
    until(Side::Accepted, &silent, route.listen).await;
    assert!(started.elapsed() > Duration::from_millis(990), "{:?}", started.elapsed());
    soon(silent.read_to_end(&mut Vec::new())).await.unwrap();
    // The second that it was kept back, and the two that it has.
    assert!(started.elapsed() > Duration::from_millis(2_990), "{:?}", started.elapsed());
}

#[tokio::test]
async fn who_is_kept_back_is_served_as_soon_as_it_speaks_and_may_leave_without_a_word() {
    let site = Site::start().await;
    let route = site.route().unchecked();
    let crossfade = Crossfade::start(&route.to_string()).await;
    let (speaking, started) = kept_back(route.listen).await;
    let mut client = Client::over(speaking);
    client.get("/", &[]).await;
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
    // As a load balancer asks whether somebody is there.
    for round in 0..20 {
        let probe = TcpStream::connect(route.listen).await.unwrap();
        if round % 2 == 0 {
            reset(probe);
        } else {
            drop(probe);
        }
    }
    client.get("/", &[]).await;
    open_of_workers(&crossfade, 1).await;
}

#[tokio::test]
async fn where_the_server_may_speak_first_nobody_is_kept_back() {
    let banner = RawOrigin::start(|mut stream, _| async move {
        stream.write_all(b"220 ready\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let route = Route::tcp(banner.address, banner.address).unchecked();
    let _crossfade = Crossfade::start(&route.to_string()).await;
    for _ in 0..10 {
        let started = Instant::now();
        let mut client = TcpStream::connect(route.listen).await.unwrap();
        until(Side::Accepted, &client, route.listen).await;
        assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
        let mut line = [0; 11];
        soon(client.read_exact(&mut line)).await.unwrap();
        assert_eq!(&line, b"220 ready\r\n");
    }
}

#[tokio::test]
async fn a_stop_resets_nobody_who_is_kept_back() {
    let site = Site::start().await;
    let route = site.route().unchecked();
    let mut crossfade = Crossfade::start_with("[server]\nworkers = 2", &route.to_string()).await;
    let (mut silent, _) = kept_back(route.listen).await;
    let ((late, _), (at_once, since)) = (kept_back(route.listen).await, kept_back(route.listen).await);
    crossfade.signal("TERM");
    crossfade.logged("Draining").await;
    let held = side(&at_once, route.listen) == Some(Side::KeptBack);
    assert!(held || since.elapsed() > Duration::from_millis(900));
    let mut at_once = Client::over(at_once);
    assert_eq!(at_once.get("/", &[]).await.header("connection"), Some("close"));
    // Who comes now is not kept back: the second that takes would be the last one.
    let (new, since) = (TcpStream::connect(route.listen).await.unwrap(), Instant::now());
    until(Side::Accepted, &new, route.listen).await;
    assert!(since.elapsed() < Duration::from_millis(900), "{:?}", since.elapsed());
    assert_eq!(Client::over(new).get("/", &[]).await.header("connection"), Some("close"));
    // The system has asked all three by now.
    until(Side::Accepted, &silent, route.listen).await;
    let mut late = Client::over(late);
    assert_eq!(late.get("/", &[]).await.header("connection"), Some("close"));
    // Closed, and not reset.
    assert_eq!(soon(silent.read_to_end(&mut Vec::new())).await.unwrap(), 0);
    assert_eq!(crossfade.ended().await, Some(0));
}
