//! Where a proxy's time goes: what `perf` sees of it, as a text with microseconds per request.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;

use super::{
    load::finished,
    process::{find, last_lines, pinned},
};

/// Samples a second: a prime, so as not to keep step with anything.
const FREQUENCY: &str = "997";
/// How many symbols are shown by their own time, and by that of what they call as well.
const OWN: usize = 40;
const WITH_CALLED: usize = 80;
/// How much of a symbol is shown, in characters: names of generic functions have no end.
const SYMBOL: usize = 160;
const INSTALL: &str =
    "perf: not installed; it is in linux-perf (Debian), linux-tools-$(uname -r) (Ubuntu) or perf (Fedora, Arch)";

/// The profiler.
#[derive(Debug)]
pub(super) struct Perf {
    path: PathBuf,
}

/// A recording under way.
#[derive(Debug)]
pub(super) struct Recording {
    child: Child,
    data: PathBuf,
}

impl Perf {
    /// Errors: it is not installed; with how to get it.
    pub(super) fn look() -> anyhow::Result<Self> {
        Ok(Self { path: find("perf").context(INSTALL)? })
    }

    /// Starts looking at these processes, from `core`, and writing to `data`. Errors: it cannot be started.
    pub(super) fn record(&self, pids: &[u32], core: Option<usize>, data: &Path) -> anyhow::Result<Recording> {
        let pids = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let mut command = pinned(&self.path, core);
        command.args(["record", "--call-graph", "fp", "-F", FREQUENCY, "-p", &pids, "-o"]).arg(data);
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("{}: cannot be started", self.path.display()))?;
        Ok(Recording { child, data: data.to_owned() })
    }

    /// What was recorded. Errors: it is not readable, or there is nothing in it.
    pub(super) async fn symbols(&self, data: &Path) -> anyhow::Result<Vec<Symbol>> {
        let mut command = pinned(&self.path, None);
        command.args(["report", "--stdio", "--children", "--call-graph", "none", "--no-inline", "-t", "|"]);
        command.args(["-F", "overhead_children,overhead,sym", "-i"]).arg(data);
        let text = finished(command).await.context("perf report")?;
        let symbols: Vec<Symbol> = text.lines().filter_map(Symbol::parse).collect();
        if symbols.is_empty() {
            bail!("perf report: {}: no samples in it", data.display());
        }
        Ok(symbols)
    }
}

impl Recording {
    /// Ends it. Errors: it had ended before, or wrote nothing; with what it said.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        let running = self.child.try_wait().context("perf: cannot be waited for")?.is_none();
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| running) {
            kill_process(pid, Signal::INT).context("perf: cannot be ended")?;
        }
        let output = self.child.wait_with_output().await.context("perf: cannot be waited for")?;
        let written = fs::metadata(&self.data).is_ok_and(|data| data.len() > 0);
        if !running || !written {
            bail!("perf record: ended by itself{}", last_lines(&String::from_utf8_lossy(&output.stderr)));
        }
        Ok(())
    }
}

/// A function and its share of the samples, in per cent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Symbol {
    name: String,
    kernel: bool,
    /// Samples in it, and samples in it or in what it called.
    own: f64,
    with_called: f64,
}

impl Symbol {
    /// ` 14.52% | 7.10%  |[k] do_syscall_64`: with what it called, its own, and whose it is.
    fn parse(line: &str) -> Option<Self> {
        let mut columns = line.splitn(3, '|');
        let mut per_cent = || columns.next()?.trim().strip_suffix('%')?.parse::<f64>().ok();
        let (with_called, own) = (per_cent()?, per_cent()?);
        let (whose, name) = columns.next()?.trim().split_once(' ')?;
        Some(Self { name: name.trim().to_owned(), kernel: whose == "[k]", own, with_called })
    }

    /// An address that belongs to nothing known: where frames are lost, the stack is full of them.
    fn is_lost(&self) -> bool {
        self.name.trim_start_matches("0x").bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

/// The symbols as a text, below `head`. `cpu`: processor time of a request, in microseconds.
pub(super) fn text(head: &str, symbols: &[Symbol], cpu: f64) -> String {
    let sum = |kernel: bool| symbols.iter().filter(|one| one.kernel == kernel).map(|one| one.own).sum::<f64>();
    let (user, kernel) = (sum(false), sum(true));
    let each = |share: f64| share / 100.0 * cpu;
    let mut text = format!(
        "{head}\nby samples: user {user:.1} %, {:.2} µs; kernel {kernel:.1} %, {:.2} µs\n",
        each(user),
        each(kernel)
    );
    if kernel == 0.0 {
        text.push_str("the kernel shows nothing: run it as root, or lower kernel.perf_event_paranoid to 1\n");
    }
    let mut section = |title: &str, of: fn(&Symbol) -> f64, most: usize, skip: fn(&Symbol) -> bool| {
        let mut sorted: Vec<&Symbol> = symbols.iter().filter(|one| of(one) > 0.0 && !skip(one)).collect();
        sorted.sort_by(|one, other| of(other).total_cmp(&of(one)));
        let _ = writeln!(text, "\n{title}\n{:>7} {:>10}", "%", "µs/request");
        for one in sorted.into_iter().take(most) {
            let mut name: String = one.name.chars().take(SYMBOL).collect();
            if name.len() < one.name.len() {
                name.push('…');
            }
            let whose = if one.kernel { "kernel" } else { "user" };
            let _ = writeln!(text, "{:>7.2} {:>10.3}  {whose:6}  {name}", of(one), each(of(one)));
        }
    };
    section("a function's own time", |one| one.own, OWN, |_| false);
    section("with what it calls", |one| one.with_called, WITH_CALLED, Symbol::is_lost);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(name: &str, kernel: bool, own: f64, with_called: f64) -> Symbol {
        Symbol { name: name.to_owned(), kernel, own, with_called }
    }

    #[test]
    fn lines_of_perf_report_are_understood() {
        let check = |line: &str, expected| assert_eq!(Symbol::parse(line), expected, "{line}");
        check(" 14.52% | 7.10%  |[k] do_syscall_64", Some(symbol("do_syscall_64", true, 7.1, 14.52)));
        let rust = "<core::pin::Pin<P> as core::future::future::Future>::poll";
        check(&format!(" 100.00% | 0.00%  |[.] {rust}   "), Some(symbol(rust, false, 0.0, 100.0)));
        for other in ["", "#", "# Children|Overhead|Symbol", "# Samples: 310  of event 'cpu-clock'", "1%|x|[k] a"] {
            check(other, None);
        }
    }

    #[test]
    fn shares_become_microseconds_of_a_request() {
        let symbols = [
            symbol("main", false, 0.0, 90.0),
            symbol("0x00007ffee54e3780", false, 10.0, 40.0),
            symbol("parse", false, 15.0, 25.0),
            symbol("tcp_sendmsg", true, 75.0, 75.0),
        ];
        let text = text("http", &symbols, 10.0);
        assert!(text.starts_with("http\nby samples: user 25.0 %, 2.50 µs; kernel 75.0 %, 7.50 µs\n"), "{text}");
        let (own, with_called) = text.split_once("with what it calls").unwrap();
        let order = |part: &str| -> Vec<String> {
            let rows = part.lines().filter(|line| line.contains("user  ") || line.contains("kernel  "));
            rows.map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
        };
        let expected =
            ["75.00 7.500 kernel tcp_sendmsg", "15.00 1.500 user parse", "10.00 1.000 user 0x00007ffee54e3780"];
        assert_eq!(order(own), expected);
        let expected = ["90.00 9.000 user main", "75.00 7.500 kernel tcp_sendmsg", "25.00 2.500 user parse"];
        assert_eq!(order(with_called), expected, "lost frames have no time of others");
        assert!(!text.contains("paranoid"), "{text}");
    }

    #[test]
    fn a_kernel_that_shows_nothing_is_pointed_out() {
        assert!(text("http", &[symbol("parse", false, 100.0, 100.0)], 10.0).contains("perf_event_paranoid"));
    }

    #[test]
    fn endless_names_are_cut() {
        let text = text("http", &[symbol(&"µ".repeat(500), false, 1.0, 1.0)], 1.0);
        assert!(text.contains('…') && text.lines().all(|line| line.chars().count() < SYMBOL + 40), "{text}");
    }

    #[tokio::test]
    async fn a_recording_that_ends_by_itself_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("perf");
        fs::write(&script, "#!/bin/sh\necho 'No permission to enable cycles event.' >&2\nexit 255\n").unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut recording = Perf { path: script }.record(&[1], None, &dir.path().join("perf.data")).unwrap();
        recording.child.wait().await.unwrap();
        let error = recording.stop().await.unwrap_err().to_string();
        assert_eq!(error, "perf record: ended by itself: No permission to enable cycles event.");
    }
}
