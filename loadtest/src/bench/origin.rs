//! What the peers stand in front of: nginx, or two brokers.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use anyhow::{Context, bail};
use rcgen::generate_simple_self_signed;
use tokio::{
    io::{copy, sink},
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};

use super::{
    case::Through,
    peer::{Arms, Ports, Program, Tools, write},
    process::Process,
    template,
};

/// Bytes of the large response.
const LARGE: usize = 1 << 20;
/// The certificate, for who is to trust it, and certificate and key, for who serves them.
pub(super) const CA: &str = "ca.pem";
pub(super) const SERVER: &str = "server.pem";

/// The running origins of a case.
#[derive(Debug)]
pub(super) struct Origins {
    pub(super) arms: Arms,
    processes: Vec<Process>,
}

impl Origins {
    /// The program that the origins of a case are.
    pub(super) fn program(through: Through) -> Program {
        match through {
            Through::Http | Through::Https | Through::Tcp => Program::Nginx,
            Through::Mqtt => Program::Mosquitto,
        }
    }

    /// Starts them on `core` and waits until they listen. Errors: one does not start; with what it said.
    pub(super) async fn start(
        through: Through,
        tools: &Tools,
        core: Option<usize>,
        ports: &mut Ports,
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let program = Self::program(through);
        let Some(path) = tools.path(program) else { bail!("{}: not installed", program.name()) };
        let arms = Arms { blue: ports.free(), green: ports.free() };
        let mut processes = Vec::new();
        if program == Program::Mosquitto {
            for (label, address) in [("mosquitto-blue", arms.blue), ("mosquitto-green", arms.green)] {
                let own = dir.join(label);
                fs::create_dir_all(&own).with_context(|| format!("{}: cannot be made", own.display()))?;
                let file = write(template::MOSQUITTO, &[("port", address.port().to_string())], &own)?;
                let mut broker = Process::start(label, path, ["-c".as_ref(), file.as_os_str()], core, &own)?;
                broker.listens(address).await?;
                processes.push(broker);
            }
        } else {
            let mut values = vec![("dir", dir.display().to_string())];
            values.extend(arms.values());
            let file = write(template::ORIGIN, &values, dir)?;
            let mut origin = Process::start("origin", path, ["-c".as_ref(), file.as_os_str()], core, dir)?;
            origin.listens(arms.blue).await?;
            processes.push(origin);
        }
        Ok(Self { arms, processes })
    }

    /// Errors: one has ended by itself; with what it said.
    pub(super) fn run(&mut self) -> anyhow::Result<()> {
        self.processes.iter_mut().try_for_each(Process::runs)
    }
}

/// A server that accepts, reads and never answers, until it is dropped.
#[derive(Debug)]
pub(super) struct BlackHole {
    pub(super) address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl BlackHole {
    /// Errors: no port is free.
    pub(super) async fn open() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("black hole: no free port")?;
        let address = listener.local_addr().context("black hole: its address is not known")?;
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((mut connection, _)) = accepted else { continue };
                        connections.spawn(async move { copy(&mut connection, &mut sink()).await });
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { address, accepting })
    }
}

impl Drop for BlackHole {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Writes what origins and peers serve into `dir`: the large response and a certificate for 127.0.0.1.
pub(super) fn write_files(dir: &Path) -> anyhow::Result<()> {
    let put = |name: &str, bytes: &[u8]| {
        let file = dir.join(name);
        fs::write(&file, bytes).with_context(|| format!("{}: cannot be written", file.display()))
    };
    fs::create_dir(dir.join("www")).with_context(|| format!("{}: no folder can be made in it", dir.display()))?;
    put("www/large", &vec![b'x'; LARGE])?;
    let made = generate_simple_self_signed(["127.0.0.1".to_owned()]).context("a certificate cannot be made")?;
    put(CA, made.cert.pem().as_bytes())?;
    put(SERVER, format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem()).as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        time::timeout,
    };

    use super::*;

    #[tokio::test]
    async fn a_black_hole_takes_everything_and_answers_nothing() {
        let hole = BlackHole::open().await.unwrap();
        let mut connection = TcpStream::connect(hole.address).await.unwrap();
        // More than buffers hold.
        timeout(Duration::from_secs(30), connection.write_all(&vec![0; 16 << 20])).await.unwrap().unwrap();
        let answer = timeout(Duration::from_millis(50), connection.read(&mut [0; 1])).await;
        assert!(answer.is_err(), "{answer:?}");
        drop(hole);
        let end = timeout(Duration::from_secs(30), connection.read(&mut [0; 1])).await.unwrap();
        assert!(!matches!(end, Ok(1..)), "{end:?}");
    }
}
