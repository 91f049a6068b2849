//! What survives: `kill -9` at any moment, and a damaged state file that is refused rather than guessed at.

use std::{fs, net::SocketAddr};

use http::StatusCode;
use loadtest::origin::TcpOrigin;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Duration, Instant};

use crate::{
    clients::Client,
    harness::{Crossfade, Refused, configuration, free_address, seeded},
    routes::Route,
    site::any_port,
    tcp::{address_is_green, from_address, label},
};

const KILLS: u16 = 200;

#[tokio::test]
async fn the_last_acknowledged_split_is_served_after_kill_dash_nine_at_any_moment() {
    let blue = TcpOrigin::start("python", any_port()).await.unwrap();
    let green = TcpOrigin::start("go", any_port()).await.unwrap();
    let route = Route::tcp(blue.address(), green.address());
    let mut crossfade = Crossfade::start(&route.to_string()).await;
    let mut random = seeded();

    // Kills fall before, into and behind the change: up to twice as late as would make every other one come after the
    // answer, which follows the machine's pace.
    let mut usual = Duration::from_millis(2);
    crossfade.admin.split("bus", 30.0).await;
    let (mut recorded, mut acknowledged, mut survived, mut lost) = (30.0, 0, 0, 0);
    for nth in 0..KILLS {
        let wanted = loop {
            let wanted = f64::from(random.u16(0..=10_000)) / 100.0;
            if wanted != recorded {
                break wanted;
            }
        };
        let delay = usual.mul_f64(random.f64() * 2.0);
        let posting = tokio::spawn(post_split(crossfade.admin.address, wanted));
        // Not a sleep: that is no finer than a millisecond, and a change hardly takes longer.
        let posted = Instant::now();
        while posted.elapsed() < delay {
            tokio::task::yield_now().await;
        }
        crossfade.kill();
        let was_acknowledged = posting.await.unwrap();
        crossfade.kill_and_restart().await;

        let now = crossfade.admin.green("bus").await;
        if was_acknowledged {
            assert_eq!(now, wanted, "kill {nth}, {delay:?} after the request: it was acknowledged");
            acknowledged += 1;
            usual = usual.mul_f64(0.9);
        } else {
            assert!(now == wanted || now == recorded, "kill {nth}, {delay:?}: {now} instead of {wanted} or {recorded}");
            *(if now == wanted { &mut survived } else { &mut lost }) += 1;
            usual = usual.mul_f64(1.1);
        }
        let expected = if address_is_green(nth, now) { "go" } else { "python" };
        assert_eq!(label(&mut from_address(nth, route.listen).await).await, expected, "traffic follows the record");
        recorded = now;
    }
    eprintln!(
        "{KILLS} kills, half of them within {usual:?}: {acknowledged} after the answer, {survived} before it and recorded, \
         {lost} before it and not"
    );
    // The kills are worth little when they all fall on one side.
    assert!(acknowledged >= 20 && survived + lost >= 20, "{acknowledged}, {survived}, {lost}");
}

/// Was the change acknowledged before the connection broke?
async fn post_split(admin: SocketAddr, percent: f64) -> bool {
    let body = json!({ "route": "bus", "green_percentage": percent }).to_string();
    let request = format!(
        "POST /traffic-split HTTP/1.1\r\nhost: {admin}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n\
         {body}",
        body.len()
    );
    let Ok(mut client) = Client::try_connect(admin).await else { return false };
    match client.exchange(request.as_bytes()).await {
        Ok(answer) => {
            assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            true
        }
        Err(_) => false,
    }
}

/// A folder with a configuration of a route that nobody serves, whose state is at `state`.
fn folder(state: &str) -> (TempDir, SocketAddr) {
    let (dir, admin) = (TempDir::new().unwrap(), free_address());
    let route = Route::tcp(free_address(), free_address()).unchecked().green_percentage(11.0);
    let text = configuration(admin, "", &route.to_string()).replace("crossfade.db", state);
    fs::write(dir.path().join("crossfade.toml"), text).unwrap();
    (dir, admin)
}

/// A state file in which `bus` is at 37.5 %.
async fn recorded() -> Vec<u8> {
    let (dir, admin) = folder("crossfade.db");
    let mut crossfade = Crossfade::start_in(dir, admin).await;
    crossfade.admin.split("bus", 37.5).await;
    crossfade.signal("TERM");
    assert_eq!(crossfade.ended().await, Some(0));
    fs::read(crossfade.state_path()).unwrap()
}

/// Starts on a state file with this content.
async fn start_on(state: &[u8]) -> Result<Crossfade, Refused> {
    let (dir, admin) = folder("crossfade.db");
    fs::write(dir.path().join("crossfade.db"), state).unwrap();
    Crossfade::try_start_in(dir, admin).await
}

/// A damaged file is named, with the way out, and left as it is.
fn assert_refused(refused: &Refused, state: &[u8], what: &str) {
    let Refused { code, said, dir } = refused;
    assert_eq!(*code, Some(1), "{what}: {said}");
    let path = dir.path().join("crossfade.db");
    let named = format!("crossfade: state file {}: ", path.display());
    let cure = "; restore a copy of it, or move it away to start from the configuration's green_percentage";
    assert!(said.contains(&named) && said.contains(cure), "{what}: {said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
    assert!(fs::read(path).unwrap() == state, "{what}: the file was changed");
}

#[tokio::test]
async fn a_state_file_that_was_cut_short_is_refused_and_left_as_it_is() {
    let state = recorded().await;
    let (pages, half) = (state.len() / 4096, state.len() / 2);
    let lengths = [0, 1, 15, 16, 99, 100, 512, half, state.len() - 4096, state.len() - 512, state.len() - 1];
    for length in lengths.into_iter().chain((1..pages).map(|page| page * 4096)) {
        match start_on(&state[..length]).await {
            Err(refused) => assert_refused(&refused, &state[..length], &format!("{length} of {} bytes", state.len())),
            Ok(serving) => panic!("{length} of {} bytes serve {} %", state.len(), serving.admin.green("bus").await),
        }
    }
    for (what, other) in [("text", &b"green_percentage = 50\n".repeat(300)[..]), ("zeros", &[0; 8192])] {
        assert_refused(&start_on(other).await.err().unwrap(), other, what);
    }
}

#[tokio::test]
async fn a_flipped_bit_is_refused_or_changes_nothing() {
    let state = recorded().await;
    let mut random = seeded();
    // The state's row: the route, 3750 hundredths, revision and digest behind each other.
    let row = state.windows(5).position(|window| window == b"bus\x0e\xa6").unwrap();
    // Everywhere, and in each byte around the row that matters.
    let anywhere = (0..60).map(|_| random.usize(..state.len())).collect::<Vec<_>>();
    let (mut refusals, mut harmless) = (0, 0);
    for at in anywhere.into_iter().chain(row..row + 38) {
        let mut flipped = state.clone();
        flipped[at] ^= 1 << random.u8(..8);
        let what = format!("byte {at}: {:#04x} for {:#04x}", flipped[at], state[at]);
        match start_on(&flipped).await {
            Err(refused) => {
                assert_refused(&refused, &flipped, &what);
                refusals += 1;
            }
            Ok(serving) => {
                let (_, split) = serving.admin.get("/traffic-split?route=bus").await;
                assert_eq!((&split["green"]["percentage"], &split["latched"]), (&json!(37.5), &json!(false)), "{what}");
                assert!(!(row..row + 38).contains(&at), "{what}: in the row, and not noticed");
                harmless += 1;
            }
        }
    }
    eprintln!("{refusals} flips refused, {harmless} in bytes that mean nothing");
}

#[tokio::test]
async fn a_missing_state_file_is_created_and_read_again() {
    let (dir, admin) = folder("crossfade.db");
    let mut crossfade = Crossfade::start_in(dir, admin).await;
    assert!(crossfade.state_path().exists());
    assert_eq!(crossfade.admin.green("bus").await, 11.0, "without a record, green_percentage counts");
    crossfade.admin.split("bus", 0.01).await;
    crossfade.kill_and_restart().await;
    assert_eq!(crossfade.admin.green("bus").await, 0.01);
}

#[tokio::test]
async fn a_state_that_cannot_be_there_is_a_clear_error() {
    let folder_cure = "could not be created; make its folder exist and writable";
    for (state, problem) in [
        ("missing/crossfade.db", folder_cure),
        // Even root cannot make files here.
        ("/sys/crossfade.db", folder_cure),
        (".", "is not a file; "),
        ("crossfade.toml", "is too short to be a SQLite database; "),
    ] {
        let (dir, admin) = folder(state);
        let Err(Refused { code, said, .. }) = Crossfade::try_start_in(dir, admin).await else {
            panic!("{state} serves")
        };
        assert_eq!(code, Some(1), "{state}: {said}");
        let line = said.lines().find(|line| line.starts_with("crossfade: state file ")).unwrap_or_default();
        assert!(line.contains(state) && line.contains(problem), "{state}: {said}");
    }
}

#[tokio::test]
async fn two_processes_cannot_have_the_same_state() {
    let (dir, admin) = folder("crossfade.db");
    let first = Crossfade::start_in(dir, admin).await;
    let state = first.state_path().to_str().unwrap().to_owned();
    let (dir, admin) = folder(&state);
    let Err(Refused { code, said, .. }) = Crossfade::try_start_in(dir, admin).await else { panic!("both serve") };
    assert_eq!(code, Some(1), "{said}");
    let expected =
        format!("state file {state}: is in use by another crossfade; stop it or give this one another state file");
    assert!(said.contains(&expected), "{said}");
    first.admin.split("bus", 50.0).await;
}
