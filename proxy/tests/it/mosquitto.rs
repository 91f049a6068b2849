//! Real mosquitto brokers and mosquitto's own clients, as processes.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::harness::{eventually, free_address};

/// A running broker, ended with the test.
pub(crate) struct Mosquitto {
    child: Child,
    pub(crate) address: SocketAddr,
    dir: TempDir,
}

impl Mosquitto {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// `more`: further lines of its configuration.
    pub(crate) async fn start_with(more: &str) -> Self {
        let (dir, address) = (TempDir::new().unwrap(), free_address());
        let config = dir.path().join("mosquitto.conf");
        // As root it would change to a user of its own, who may not exist.
        let lines = format!(
            "user root\nlistener {} {}\nallow_anonymous true\nlog_dest stderr\nlog_type notice\nlog_type warning\nlog_type error\n{more}\n",
            address.port(),
            address.ip()
        );
        fs::write(&config, lines).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = command("mosquitto").arg("-c").arg(config).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let broker = Self { child, address, dir };
        eventually("mosquitto listens", async || TcpStream::connect(address).await.ok()).await;
        broker
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The ids of the clients it has accepted, oldest first.
    pub(crate) fn clients(&self) -> Vec<String> {
        let log = self.log();
        // "1700000000: New client connected from 127.0.0.1:40000 as device-7 (p2, c1, k60)."
        let id = |line: &str| {
            let (_, what) = line.split_once(": New ")?;
            let from = what.strip_prefix("client").or_else(|| what.strip_prefix("bridge"))?;
            let (_, id) = from.strip_prefix(" connected from ")?.split_once(" as ")?;
            Some(id[..id.rfind(" (p")?].to_owned())
        };
        log.lines().filter_map(id).collect()
    }

    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.stop();
    }
}

/// `mosquitto`, `mosquitto_pub` or `mosquitto_sub`. Debian keeps the broker where ordinary users do not look.
pub(crate) fn command(program: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(program)).find(|file| file.exists());
    Command::new(found.unwrap_or_else(|| panic!("{program} is not installed; run `make test`, which installs it")))
}
