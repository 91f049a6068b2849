//! A started program: pinned to a core, waited for, held to account for its processor time and memory, and ended.
//!
//! A program may have processes below it (nginx has its worker there), so all accounts are over the whole tree.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io,
    net::SocketAddr,
    ops::Sub,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

/// How long a program may take until it listens.
const START: Duration = Duration::from_secs(15);
/// What the kernel counts processor time in for everybody to see: USER_HZ, 100 on each architecture there is a proxy for.
const TICK_US: f64 = 10_000.0;
/// How much of what a failed program said is quoted, in lines.
const QUOTED: usize = 6;

/// A program that runs until it is dropped.
#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    child: Child,
    said: PathBuf,
}

impl Process {
    /// Starts `program` on `core` in the folder `dir`, where its standard error goes to `NAME.log`.
    pub(super) fn start<A: AsRef<OsStr>>(
        name: &'static str,
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        core: Option<usize>,
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let said = dir.join(format!("{name}.log"));
        let log = File::create(&said).with_context(|| format!("{}: cannot be written", said.display()))?;
        let child = pinned(program, core)
            .args(arguments)
            .current_dir(dir)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("{name}: {} cannot be started", program.display()))?;
        Ok(Self { name, child, said })
    }

    /// Waits until it accepts connections on `address`. Errors: it ends before, or takes longer than [`START`]; with what
    /// it said.
    pub(super) async fn listens(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        while TcpStream::connect(address).await.is_err() {
            self.runs()?;
            if Instant::now() > deadline {
                bail!("{}: not listening on {address} after {START:?}{}", self.name, quote(&self.said));
            }
            sleep(Duration::from_millis(20)).await;
        }
        // Whoever accepted may be a stranger, when the port was taken in between.
        self.runs()
    }

    /// Errors: it has ended by itself; with what it said.
    pub(super) fn runs(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait().with_context(|| format!("{}: cannot be waited for", self.name))? {
            Some(status) => bail!("{}: ended by itself, {status}{}", self.name, quote(&self.said)),
            None => Ok(()),
        }
    }

    /// Processor time that all its processes have used so far.
    pub(super) fn cpu(&self) -> io::Result<Cpu> {
        let tree = tree(self.child.id())?;
        Ok(tree
            .iter()
            .fold(Cpu::default(), |sum, stat| Cpu { user: sum.user + stat.user, system: sum.system + stat.system }))
    }

    /// The numbers of all its processes.
    pub(super) fn pids(&self) -> io::Result<Vec<u32>> {
        Ok(tree(self.child.id())?.iter().map(|stat| stat.pid).collect())
    }

    /// Memory of all its processes, in bytes.
    pub(super) fn memory(&self) -> io::Result<u64> {
        tree(self.child.id())?.iter().map(|stat| memory(stat.pid)).sum()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The first process first, or it would start others in place of the ended ones. None of them has anything to
        // lose: what they write is in a folder that goes with the run.
        let below = tree(self.child.id()).unwrap_or_default();
        let _ = self.child.kill();
        let _ = self.child.wait();
        for stat in below.iter().filter(|stat| stat.pid != self.child.id()) {
            if let Some(pid) = i32::try_from(stat.pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// The cores of a bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cores {
    /// Where the peer runs.
    pub(crate) proxy: usize,
    /// Where load and origins run.
    pub(crate) load: usize,
}

impl Cores {
    /// The first two that we may use. `None`: there is one only, or no `taskset`.
    pub(super) fn pick() -> Option<Self> {
        find("taskset")?;
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        let mut cores = listed(list.trim());
        Some(Self { proxy: cores.next()?, load: cores.next()? })
    }

    pub(super) fn proxy(self) -> usize {
        self.proxy
    }

    pub(super) fn load(self) -> usize {
        self.load
    }
}

/// The numbers of a list such as `0-1,4,6-7`, as far as it is one.
fn listed(list: &str) -> impl Iterator<Item = usize> {
    list.split(',')
        .map_while(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
        })
        .flatten()
}

/// The command that runs `program` on one core, or on all. It has a process group of its own: Ctrl-C on the terminal is
/// for us, who then end it.
pub(super) fn pinned(program: &Path, core: Option<usize>) -> Command {
    let mut command = match core {
        Some(core) => {
            let mut taskset = Command::new("taskset");
            taskset.arg("-c").arg(core.to_string()).arg(program);
            taskset
        }
        None => Command::new(program),
    };
    command.process_group(0);
    command
}

/// Where a program is: in the folders of PATH, or where systems keep servers.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Processor time, in ticks of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cpu {
    user: u64,
    system: u64,
}

impl Cpu {
    /// What we spent on processes that we started and that have ended.
    pub(super) fn of_ended_children() -> io::Result<Self> {
        let own = Stat::read("self").ok_or_else(|| io::Error::other("/proc/self/stat: not readable"))?;
        Ok(own.children)
    }

    /// Microseconds of user and of system time for each of `requests`.
    pub(super) fn per(self, requests: u64) -> (f64, f64) {
        let each = |ticks: u64| ticks as f64 * TICK_US / requests.max(1) as f64;
        (each(self.user), each(self.system))
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { user: self.user.saturating_sub(before.user), system: self.system.saturating_sub(before.system) }
    }
}

/// What `/proc/PID/stat` says, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    pid: u32,
    parent: u32,
    user: u64,
    system: u64,
    children: Cpu,
}

impl Stat {
    /// `process`: its number, or `self`. `None` when it is gone.
    fn read(process: &str) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
    }

    /// proc_pid_stat(5). The name of the program stands in parentheses and may hold spaces and parentheses itself.
    fn parse(line: &str) -> Option<Self> {
        let (pid, rest) = line.split_once(" (")?;
        let (_, rest) = rest.rsplit_once(") ")?;
        // The first of these is field 3 of the manual, the state.
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |nth: usize| fields.get(nth - 3)?.parse::<u64>().ok();
        Some(Self {
            pid: pid.parse().ok()?,
            parent: u32::try_from(number(4)?).ok()?,
            user: number(14)?,
            system: number(15)?,
            children: Cpu { user: number(16)?, system: number(17)? },
        })
    }
}

/// A process and all below it.
fn tree(root: u32) -> io::Result<Vec<Stat>> {
    let numbers = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let all: Vec<Stat> = numbers
        .filter(|name| name.starts_with(|c: char| c.is_ascii_digit()))
        .filter_map(|pid| Stat::read(&pid))
        .collect();
    let mut members = BTreeSet::from([root]);
    // Numbers of processes wrap around, so a child may stand before its parent.
    loop {
        let below = all.iter().filter(|stat| members.contains(&stat.parent)).map(|stat| stat.pid);
        let more: Vec<u32> = below.filter(|pid| !members.contains(pid)).collect();
        if more.is_empty() {
            break;
        }
        members.extend(more);
    }
    Ok(all.into_iter().filter(|stat| members.contains(&stat.pid)).collect())
}

/// Bytes of memory that are a process's own, with its share of what it has in common with others (PSS).
fn memory(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    proportional(&text).ok_or_else(|| io::Error::other(format!("/proc/{pid}/smaps_rollup: no line \"Pss:\"")))
}

fn proportional(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// The last of what a program wrote, for an error: `: …`, or nothing when it was silent.
fn quote(said: &Path) -> String {
    let text = fs::read(said).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    last_lines(&text)
}

/// The last lines of a text, for an error: `: …`, or nothing when there are none.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return String::new();
    }
    format!(": {}", lines[lines.len().saturating_sub(QUOTED)..].join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_read_whatever_the_name_of_the_program() {
        let tail = "S 7 1234 1234 0 -1 4194560 1509 20 0 0 31 42 5 6 20 0 1 0 5321 12345 678 18446744073709551615";
        for name in ["nginx", "a b", "x) S 1 (y", ")", "", "((()"] {
            let stat = Stat::parse(&format!("1234 ({name}) {tail}\n"));
            let children = Cpu { user: 5, system: 6 };
            assert_eq!(stat, Some(Stat { pid: 1234, parent: 7, user: 31, system: 42, children }), "{name}");
        }
        for faulty in ["", "1234", "1234 (nginx", "1234 (nginx) S 7", "x (nginx) S 7 1 1 0 -1 0 0 0 0 0 1 1 1 1"] {
            assert_eq!(Stat::parse(faulty), None, "{faulty}");
        }
    }

    #[test]
    fn lists_of_cores_are_read() {
        let check = |list, expected: &[usize]| assert_eq!(listed(list).collect::<Vec<_>>(), expected, "{list}");
        check("0-1", &[0, 1]);
        check("0", &[0]);
        check("1,4-6,9", &[1, 4, 5, 6, 9]);
        check("", &[]);
    }

    #[test]
    fn memory_is_read_from_the_roll_up() {
        let rollup = "5600-7ff [rollup]\nRss:                4096 kB\nPss:                1500 kB\nPss_Dirty:  7 kB\n";
        assert_eq!(proportional(rollup), Some(1500 * 1024));
        assert_eq!(proportional("Rss: 4096 kB\n"), None);
    }

    #[test]
    fn time_is_divided_by_the_requests_it_was_spent_on() {
        let (before, after) = (Cpu { user: 100, system: 50 }, Cpu { user: 150, system: 150 });
        assert_eq!((after - before).per(100_000), (5.0, 10.0));
        assert_eq!(Cpu::default().per(0), (0.0, 0.0));
    }

    #[test]
    fn a_program_is_ended_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let script = "sleep 60 & sleep 60 & wait";
        let process = Process::start("sh", &find("sh").unwrap(), ["-c", script], None, dir.path()).unwrap();
        let deadline = Instant::now() + START;
        while tree(process.child.id()).unwrap().len() < 3 {
            assert!(Instant::now() < deadline, "the shell has not started its programs");
            std::thread::yield_now();
        }
        assert!(process.memory().unwrap() > 0);
        let pids = process.pids().unwrap();
        drop(process);
        // A process that was killed may be there for a moment, but as a zombie.
        for pid in pids {
            while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
                assert!(Instant::now() < deadline, "{pid} still runs");
                std::thread::yield_now();
            }
        }
    }

    #[tokio::test]
    async fn a_program_that_does_not_start_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let script = "echo 'no such directive \"lisssten\"' >&2; exit 3";
        let mut process = Process::start("proxy", &find("sh").unwrap(), ["-c", script], None, dir.path()).unwrap();
        let error = process.listens(SocketAddr::from(([127, 0, 0, 1], 1))).await.unwrap_err().to_string();
        assert!(error.starts_with("proxy: ended by itself, exit status: 3"), "{error}");
        assert!(error.ends_with(": no such directive \"lisssten\""), "{error}");
    }
}
