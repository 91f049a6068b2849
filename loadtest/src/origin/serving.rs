//! A bound listener, its accept loop, and the tasks of its connections: started together, ended on demand.

use std::{
    net::{Shutdown, SocketAddr},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::ListenError;

/// How long the accept loop rests when the process is out of file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// An address that is listened on. Connections queue up until an origin serves it.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address` (port 0 picks a free one) with SO_REUSEADDR, so that an origin can be started again on the port
    /// it was stopped on. Errors: the address cannot be listened on. Needs a running tokio runtime.
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let failed = |source| ListenError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens, the port filled in.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Where connections run: every task spawned here ends when the origin stops.
#[derive(Clone, Debug)]
pub(super) struct Tasks {
    running: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    /// Runs `task` until it ends or the origin stops, whichever is first.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let running = self.running.clone();
        self.tracker.spawn(async move {
            running.run_until_cancelled_owned(task).await;
        });
    }
}

/// hyper runs each HTTP/2 stream as a task of its own: those, too, must end with the origin.
impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

/// A listener that is being served. Dropping it stops it, without waiting.
#[derive(Debug)]
pub(super) struct Serving {
    address: SocketAddr,
    listening: CancellationToken,
    listener_closed: CancellationToken,
    tasks: Tasks,
}

impl Serving {
    /// Gives every accepted connection to `connection`, which runs as a task of its own. `first` is called before that.
    pub(super) fn start<C, F>(listener: Listener, first: impl FnOnce(&Tasks), connection: C) -> Self
    where
        C: Fn(TcpStream, Tasks) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let Listener { listener, address } = listener;
        let listening = CancellationToken::new();
        let listener_closed = CancellationToken::new();
        let tasks = Tasks { running: CancellationToken::new(), tracker: TaskTracker::new() };
        first(&tasks);

        let (until, closed, running) = (listening.clone(), listener_closed.clone(), tasks.clone());
        tasks.tracker.spawn(async move {
            // The guard is dropped after the listener: when it fires, the listener is gone.
            let _closed = closed.drop_guard();
            until.run_until_cancelled(accept(&listener, connection, running)).await;
            // Closing alone is not enough in a program that starts others: until they exec they hold a copy of the
            // listener, and connecting succeeds. What fails here fails because the socket is no longer listening.
            let _ = SockRef::from(&listener).shutdown(Shutdown::Both);
            drop(listener);
        });
        Self { address, listening, listener_closed, tasks }
    }

    pub(super) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener, and returns once it is closed. Open connections go on.
    pub(super) async fn stop_listening(&self) {
        self.listening.cancel();
        self.listener_closed.cancelled().await;
    }

    /// Closes the listener and every connection, and returns once they are closed.
    pub(super) async fn stop(&self) {
        self.cancel();
        self.tasks.tracker.close();
        self.tasks.tracker.wait().await;
    }

    fn cancel(&self) {
        self.listening.cancel();
        self.tasks.running.cancel();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.cancel();
    }
}

async fn accept<C, F>(listener: &TcpListener, connection: C, tasks: Tasks)
where
    C: Fn(TcpStream, Tasks) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small and waited for; a failure here means that the peer has gone already.
                let _ = stream.set_nodelay(true);
                tasks.spawn(connection(stream, tasks.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "Accept failed");
                time::sleep(ACCEPT_REST).await;
            }
        }
    }
}
