//! `kill -9` around split changes: the last acknowledged one is there afterwards.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use admin_api::{Control, Sqlite, StateStore};
use config::Split;

use crate::{
    control::ann,
    support::{FakePlane, Folder, shop},
};

const STATE: &str = "CROSSFADE_TEST_STATE";
const ROUNDS: u64 = 40;

/// Changes the split for ever, and prints each one before it asks for it and when it is acknowledged. Run by the test
/// below in a process of its own.
#[tokio::test]
#[ignore = "is the victim of a_killed_process_comes_back_with_what_it_acknowledged"]
async fn victim() {
    let Ok(state) = std::env::var(STATE) else { return };
    let store = Arc::new(Sqlite::open(Path::new(&state)).unwrap());
    let control = Control::open(shop(), store, Arc::new(FakePlane::default())).await.unwrap();
    let mut out = std::io::stderr();
    for n in 1_u64.. {
        let buckets = ((n * 7919) % 10_001) as u16;
        writeln!(out, "ask {buckets}").unwrap();
        control.set_split("shop", Split::from_buckets(buckets).unwrap(), &ann(), None).await.unwrap();
        writeln!(out, "ack {buckets}").unwrap();
    }
}

#[test]
fn a_killed_process_comes_back_with_what_it_acknowledged() {
    let folder = Folder::new();
    let path = folder.file("state.db");
    let (mut before, mut acknowledgements) = (Some(0), 0);
    for round in 0..ROUNDS {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::victim", "--ignored", "--nocapture"])
            .env(STATE, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // From another line on each time, so that the kill falls before, during and after a write.
        let mut lines = BufReader::new(victim.stderr.take().unwrap()).lines();
        let mut seen: Vec<String> = lines.by_ref().take(1 + (round % 11) as usize).map(Result::unwrap).collect();
        for _ in 0..round * 20_000 {
            std::hint::spin_loop();
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
        seen.extend(lines.map_while(Result::ok));

        let value = |line: Option<&String>| line.and_then(|line| line.split(' ').nth(1)?.parse::<u16>().ok());
        let acknowledged = value(seen.iter().rfind(|line| line.starts_with("ack")));
        let asked = value(seen.iter().rfind(|line| line.starts_with("ask")));
        let found = Sqlite::open(&path).unwrap().load().unwrap()["shop"].split.buckets();
        acknowledgements += u64::from(acknowledged.is_some());
        // What was asked for last may have reached the disk without the answer getting out.
        let fits = Some(found) == acknowledged.or(before) || Some(found) == asked;
        assert!(
            fits,
            "round {round}: found {found}, acknowledged {acknowledged:?}, asked {asked:?}, before {before:?}"
        );
        before = Some(found);
    }
    assert!(acknowledgements > ROUNDS / 2, "the victim got to work in {acknowledgements} rounds only");
}
