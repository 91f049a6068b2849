//! Stands between MQTT clients and their broker, packet by packet, and can do what a network or a faulty proxy might.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::any_port;

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Out,
    Back,
}

/// What becomes of a packet: what is sent in its place.
pub(crate) type Meddler = dyn FnMut(Way, Vec<u8>) -> Vec<Vec<u8>> + Send;

/// Where the nth connection goes.
pub(crate) type Router = dyn Fn(usize) -> SocketAddr + Send + Sync;

/// A relay, ended when dropped.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    _end: DropGuard,
}

struct State {
    router: Box<Router>,
    meddler: Mutex<Box<Meddler>>,
    connections: AtomicUsize,
    packets: AtomicUsize,
    /// Cancelled to cut the connections there are.
    cut: Mutex<CancellationToken>,
    held: watch::Sender<bool>,
}

impl Relay {
    /// Passes all on to `broker`.
    pub(crate) async fn to(broker: SocketAddr) -> Self {
        Self::start(move |_| broker, |_, packet| vec![packet]).await
    }

    pub(crate) async fn start(
        router: impl Fn(usize) -> SocketAddr + Send + Sync + 'static,
        meddler: impl FnMut(Way, Vec<u8>) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            router: Box::new(router),
            meddler: Mutex::new(Box::new(meddler)),
            connections: AtomicUsize::new(0),
            packets: AtomicUsize::new(0),
            cut: Mutex::default(),
            held: watch::Sender::new(false),
        });
        let end = CancellationToken::new();
        tokio::spawn({
            let (state, end) = (Arc::clone(&state), end.clone());
            async move {
                while let Some(Ok((client, _))) = end.run_until_cancelled(listener.accept()).await {
                    let broker = (state.router)(state.connections.fetch_add(1, Ordering::Relaxed));
                    let cut = state.cut.lock().clone();
                    let (state, end) = (Arc::clone(&state), end.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = cut.cancelled() => {}
                            () = end.cancelled() => {}
                            () = state.relay(client, broker) => {}
                        }
                    });
                }
            }
        });
        Self { address, state, _end: end.drop_guard() }
    }

    /// Connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Packets that passed, both ways.
    pub(crate) fn packets(&self) -> usize {
        self.state.packets.load(Ordering::Relaxed)
    }

    /// Closes all connections; new ones are taken.
    pub(crate) fn cut(&self) {
        std::mem::take(&mut *self.state.cut.lock()).cancel();
    }

    /// Holds all packets up, or lets them go on.
    pub(crate) fn hold(&self, held: bool) {
        self.state.held.send_replace(held);
    }
}

impl State {
    async fn relay(&self, client: TcpStream, broker: SocketAddr) {
        let Ok(broker) = TcpStream::connect(broker).await else { return };
        client.set_nodelay(true).unwrap();
        broker.set_nodelay(true).unwrap();
        let ((from_client, to_client), (from_broker, to_broker)) = (client.into_split(), broker.into_split());
        // With either direction the connection ends.
        tokio::select! {
            _ = self.pass(Way::Out, from_client, to_broker) => {}
            _ = self.pass(Way::Back, from_broker, to_client) => {}
        }
    }

    async fn pass(&self, way: Way, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> std::io::Result<()> {
        let mut held = self.held.subscribe();
        loop {
            let packet = packet(&mut from).await?;
            let _ = held.wait_for(|held| !held).await;
            let packets = (self.meddler.lock())(way, packet);
            self.packets.fetch_add(1, Ordering::Relaxed);
            for packet in packets {
                to.write_all(&packet).await?;
            }
        }
    }
}

async fn packet(from: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let mut packet = vec![from.read_u8().await?];
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = from.read_u8().await?;
        packet.push(byte);
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let head = packet.len();
    packet.resize(head + length, 0);
    from.read_exact(&mut packet[head..]).await?;
    Ok(packet)
}
