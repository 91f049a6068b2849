//! A real mosquitto broker, as a process.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    time,
};

use crate::{DEADLINE, any_port};

/// A running broker, ended with the test.
pub(crate) struct Mosquitto {
    child: Child,
    pub(crate) address: SocketAddr,
    dir: TempDir,
}

impl Mosquitto {
    /// One that lets everybody in and drops nothing by itself.
    pub(crate) async fn start() -> Self {
        Self::start_with(TempDir::new().unwrap(), "allow_anonymous true").await
    }

    /// `more`: further lines of its configuration, which may name files in `dir`.
    pub(crate) async fn start_with(dir: TempDir, more: &str) -> Self {
        // Whoever else takes the port meanwhile, this process ends, and another port is tried.
        let mut dir = Some(dir);
        loop {
            let address = TcpListener::bind(any_port()).await.unwrap().local_addr().unwrap();
            match Self::try_start(dir.take().unwrap(), address, more).await {
                Ok(broker) => return broker,
                Err(again) => dir = Some(again),
            }
        }
    }

    async fn try_start(dir: TempDir, address: SocketAddr, more: &str) -> Result<Self, TempDir> {
        let config = dir.path().join("mosquitto.conf");
        let lines = format!(
            "user root\nmax_queued_messages 0\nset_tcp_nodelay true\nlog_dest none\nlistener {} {}\n{more}\n",
            address.port(),
            address.ip()
        );
        fs::write(&config, lines).unwrap();
        let mut child = command("mosquitto").arg("-c").arg(config).stderr(Stdio::null()).spawn().unwrap();
        let deadline = time::Instant::now() + DEADLINE;
        while TcpStream::connect(address).await.is_err() {
            if child.try_wait().unwrap().is_some() {
                return Err(dir);
            }
            assert!(time::Instant::now() < deadline, "mosquitto does not listen");
            time::sleep(time::Duration::from_millis(5)).await;
        }
        Ok(Self { child, address, dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `mosquitto`, `mosquitto_passwd` or `mosquitto_sub`. Debian keeps the broker where ordinary users do not look.
pub(crate) fn command(program: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(program)).find(|file| file.exists());
    Command::new(found.unwrap_or_else(|| panic!("{program} is not installed; run `make test`, which installs it")))
}
