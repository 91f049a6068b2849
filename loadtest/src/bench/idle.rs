//! Connections that have been used once and then only stay.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{case::Through, process::Process};

/// How long one connection may take, and how long memory may take to settle.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Looks in a row that differ by less than [`STILL_BYTES`] before memory counts as settled.
const STILL: usize = 4;
const STILL_BYTES: u64 = 64 * 1024;
/// How the small responses of the origins end.
const ENDS: [&[u8]; 2] = [b"hello from blue\n", b"hello from green\n"];

/// Memory of `process` for each of `count` connections to `address`, in bytes. Errors: a connection fails, or is closed
/// while it should stay.
pub(super) async fn memory_per_connection(
    process: &Process,
    address: SocketAddr,
    through: Through,
    count: usize,
) -> anyhow::Result<f64> {
    // What is allocated once is not a connection's: a few come and go first.
    for nth in 0..10 {
        drop(open(address, through, count + nth).await?);
    }
    let before = settled(process).await?;
    let held = Held::open(address, through, count).await?;
    let after = settled(process).await?;
    held.all_open()?;
    Ok(after.saturating_sub(before) as f64 / count as f64)
}

/// Connections that stay open until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    connections: Vec<TcpStream>,
}

impl Held {
    /// So many to `address`, each of which has had its answer. Errors: one fails.
    pub(super) async fn open(address: SocketAddr, through: Through, count: usize) -> anyhow::Result<Self> {
        let mut connections = Vec::with_capacity(count);
        for nth in 0..count {
            connections
                .push(open(address, through, nth).await.with_context(|| format!("connection {nth} of {count}"))?);
        }
        Ok(Self { connections })
    }

    /// Errors: one was closed while it should stay.
    pub(super) fn all_open(&self) -> anyhow::Result<()> {
        if let Some(closed) = self.connections.iter().position(is_closed) {
            bail!("connection {closed} of {} was closed while it was idle", self.connections.len());
        }
        Ok(())
    }
}

/// A connection that has had its answer.
async fn open(address: SocketAddr, through: Through, nth: usize) -> anyhow::Result<TcpStream> {
    let used = async {
        let mut connection = TcpStream::connect(address).await?;
        match through {
            Through::Mqtt => {
                connection.write_all(&connect_packet(nth)).await?;
                let mut connack = [0; 4];
                connection.read_exact(&mut connack).await?;
                if connack != [0x20, 2, 0, 0] {
                    bail!("{connack:02x?} instead of a CONNACK");
                }
            }
            Through::Http | Through::Https | Through::Tcp => {
                let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\nx-session-id: user-{nth}\r\n\r\n");
                connection.write_all(request.as_bytes()).await?;
                let mut answer = Vec::with_capacity(512);
                while !ENDS.iter().any(|end| answer.ends_with(end)) {
                    if connection.read_buf(&mut answer).await? == 0 || answer.len() > 4096 {
                        bail!(
                            "no answer from an origin{}",
                            super::process::last_lines(&String::from_utf8_lossy(&answer))
                        );
                    }
                }
            }
        }
        Ok(connection)
    };
    timeout(PATIENCE, used).await.with_context(|| format!("{address}: no answer within {PATIENCE:?}"))?
}

/// CONNECT of MQTT 3.1.1 with a clean session and no keep-alive.
fn connect_packet(nth: usize) -> Vec<u8> {
    let id = format!("idle-{nth}");
    let length = u8::try_from(12 + id.len()).expect("ids are short");
    let mut packet = vec![0x10, length, 0, 4, b'M', b'Q', b'T', b'T', 4, 0b10, 0, 0, 0, length - 12];
    packet.extend_from_slice(id.as_bytes());
    packet
}

/// Nothing more is to come on these connections, so whatever can be read is the end.
fn is_closed(connection: &TcpStream) -> bool {
    !matches!(connection.try_read(&mut [0; 1]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Memory once it no longer changes, or what it is after [`PATIENCE`].
async fn settled(process: &Process) -> anyhow::Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    let look = || process.memory().context("memory of a peer: not readable");
    let (mut last, mut still) = (look()?, 0);
    while still < STILL && Instant::now() < deadline {
        sleep(LOOK_EVERY).await;
        let now = look()?;
        still = if now.abs_diff(last) < STILL_BYTES { still + 1 } else { 0 };
        last = now;
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use mqttbytes::v4::{Packet, read};

    use super::*;

    #[test]
    fn the_connect_packet_is_one() {
        for nth in [0, 3999] {
            let mut bytes = connect_packet(nth).as_slice().into();
            let Ok(Packet::Connect(connect)) = read(&mut bytes, 1024) else { panic!("no CONNECT") };
            assert_eq!(
                (connect.client_id, connect.keep_alive, connect.clean_session),
                (format!("idle-{nth}"), 0, true)
            );
            assert!(bytes.is_empty());
        }
    }
}
