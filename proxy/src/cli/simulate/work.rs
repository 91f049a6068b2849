//! Work that takes a while: on all cores, with a bar where it takes more than two seconds.

use std::{
    ops::Range,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

/// Runs something for each seed, and returns what came of it in their order. `what`: in a few words. `parts`: how much each
/// of them tells of, by its second argument; 1 for one that tells nothing.
pub(super) fn work<T: Send>(
    what: &str,
    seeds: Range<u64>,
    parts: u64,
    run: impl Fn(u64, &mut dyn FnMut(u64)) -> T + Sync,
) -> Vec<T> {
    let bar = ProgressBar::with_draw_target(
        Some((seeds.end - seeds.start).saturating_mul(parts)),
        ProgressDrawTarget::hidden(),
    );
    bar.set_style(ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}").expect("the template is well formed"));
    bar.set_message(what.to_owned());
    let started = Instant::now();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(seeds.start);
    let (tell, told) = mpsc::sync_channel(WORDS);
    let mut done = thread::scope(|scope| {
        for _ in 0..threads {
            let (tell, next, run) = (tell.clone(), &next, &run);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    // Nobody listens only when this is given up.
                    let mut passed = |parts| drop(tell.send(Word::Passed(parts)));
                    let result = run(seed, &mut passed);
                    drop(tell.send(Word::Done(seed, result)));
                }
            });
        }
        drop(tell);
        let (mut done, mut shown) = (Vec::new(), false);
        for word in told {
            match word {
                Word::Passed(parts) => bar.inc(parts),
                Word::Done(seed, result) => {
                    done.push((seed, result));
                    bar.set_position((done.len() as u64).saturating_mul(parts).max(bar.position()));
                }
            }
            if !shown && started.elapsed() > BAR_AFTER {
                shown = true;
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
        }
        done
    });
    bar.finish_and_clear();
    done.sort_unstable_by_key(|(seed, _)| *seed);
    done.into_iter().map(|(_, result)| result).collect()
}

enum Word<T> {
    Passed(u64),
    Done(u64, T),
}

/// That may wait to be heard; then who works waits.
const WORDS: usize = 64;

const BAR_AFTER: Duration = Duration::from_secs(2);
