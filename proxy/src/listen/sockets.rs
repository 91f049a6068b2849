//! Listening sockets: for each address one a worker, among which the system spreads new connections, so that each wakes
//! one worker and no other.
//!
//! `SO_REUSEPORT` would let any process of the same user listen beside us, a second crossfade started by mistake among
//! them. So the first socket of an address listens without it, which the system refuses as long as anybody else listens
//! there, and which nobody can do a second time. Only then is it opened for the others. What remains is a program of the
//! same user that asks for `SO_REUSEPORT` by itself, and means it.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
};

use anyhow::{Context, Result};
use nix::sys::socket::{SetSockOpt, sockopt::SetStruct};
use rustix::net::sockopt;
use socket2::{Domain, Socket, Type};
use tokio::time::Duration;

/// Connections that the system keeps for us until they are accepted.
pub(crate) const BACKLOG: i32 = 4096;

/// Listens where nobody else does. Errors: somebody does, or the address is not ours.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener> {
    let attempt = || {
        let socket = socket(address)?;
        socket.bind(&address.into())?;
        // Where two have bound at the same time, before either listened, one of them is refused here.
        socket.listen(BACKLOG)?;
        io::Result::Ok(socket.into())
    };
    attempt().with_context(|| format!("cannot listen on {address}; stop what uses it, or choose another address"))
}

/// Makes the sockets of an address at least as many as there are workers. `sockets`: listening, at least one; they may be
/// another process's at the same time. Those that are added do not listen yet, so that nothing is lost if this process
/// does not come to accept. Where the system does not let any be added, workers share what there is.
pub(crate) fn for_workers(mut sockets: Vec<TcpListener>, workers: usize) -> io::Result<Vec<TcpListener>> {
    while sockets.len() < workers {
        match beside(&sockets) {
            Ok(socket) => sockets.push(socket),
            Err(error) => {
                tracing::warn!(%error, sockets = sockets.len(), workers, "Workers share listening sockets");
                break;
            }
        }
    }
    for socket in &sockets {
        // Accepted connections inherit it: small answers must not wait for the acknowledgement of earlier ones.
        sockopt::set_tcp_nodelay(socket, true)?;
    }
    Ok(sockets)
}

/// How long the system keeps a client back that says nothing: the shortest it knows.
const KEPT_BACK: Duration = Duration::from_secs(1);

/// Whether the system is to accept a client only when it has said something, or when it has been silent for [`KEPT_BACK`]
/// (tcp(7), `TCP_DEFER_ACCEPT`). Its first bytes are there then, and who says nothing (connections made in advance,
/// scanners) costs neither a descriptor nor a task for that second. One that closes again is accepted at once. When it is
/// no longer wanted, the system asks those that it keeps back once more, each a second after it came, and accepts them.
pub(super) fn defer(socket: &impl AsFd, defer: bool) -> io::Result<()> {
    let seconds = if defer { KEPT_BACK.as_secs() as u32 } else { 0 };
    Ok(DeferAccept.set(socket, &seconds)?)
}

#[derive(Clone)]
struct DeferAccept;

nix::setsockopt_impl!(DeferAccept, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, u32, SetStruct<'_, u32>);

/// Whose is which: worker and socket, both counted from 0. Every worker has a socket, and every socket a worker.
pub(crate) fn shares(sockets: usize, workers: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..sockets.max(workers)).map(move |nth| (nth % workers, nth % sockets))
}

/// Bound where others listen.
fn beside(others: &[TcpListener]) -> io::Result<TcpListener> {
    for socket in others {
        // Unless all agree it is refused. One that was bound alone, or by an older crossfade, did not have to yet.
        sockopt::set_socket_reuseport(socket, true)?;
    }
    let address = others[0].local_addr()?;
    let socket = socket(address)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Connections of an earlier process in TIME_WAIT must not keep us out; a live listener still does.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::TcpStream};

    use super::*;

    fn here() -> TcpListener {
        bind("127.0.0.1:0".parse().unwrap()).unwrap()
    }

    #[test]
    fn every_worker_has_a_socket_and_every_socket_a_worker() {
        for (sockets, workers) in [(1, 1), (4, 4), (1, 3), (2, 5), (7, 3)] {
            let pairs = shares(sockets, workers).collect::<Vec<_>>();
            let seen = |pick: fn(&(usize, usize)) -> usize| pairs.iter().map(pick).collect::<BTreeSet<_>>();
            assert_eq!(seen(|pair| pair.0), (0..workers).collect(), "{sockets} sockets, {workers} workers");
            assert_eq!(seen(|pair| pair.1), (0..sockets).collect(), "{sockets} sockets, {workers} workers");
            // One that nobody must share is nobody else's.
            assert_eq!(pairs.len(), sockets.max(workers));
        }
    }

    #[test]
    fn nobody_else_listens_where_one_listens_whether_alone_or_in_a_group() {
        for workers in [1, 3] {
            let sockets = for_workers(vec![here()], workers).unwrap();
            assert_eq!(sockets.len(), workers);
            let address = sockets[0].local_addr().unwrap();
            for listening in [false, true] {
                if listening {
                    sockets.iter().for_each(|socket| rustix::net::listen(socket, BACKLOG).unwrap());
                }
                let refused = bind(address).unwrap_err().downcast::<io::Error>().unwrap();
                assert_eq!(refused.kind(), io::ErrorKind::AddrInUse, "{workers} workers, all listen: {listening}");
            }
            drop(sockets);
            bind(address).unwrap();
        }
    }

    #[test]
    fn a_socket_that_does_not_listen_yet_gets_no_connection_and_each_that_does_gets_some() {
        // As an older crossfade opened it.
        let old = TcpListener::bind("127.0.0.1:0").unwrap();
        old.set_nonblocking(true).unwrap();
        let address = old.local_addr().unwrap();
        let sockets = for_workers(vec![old], 3).unwrap();
        let connect = || (0..100).map(|_| TcpStream::connect(address).unwrap()).collect::<Vec<_>>();
        let waiting = || {
            let count = |socket: &TcpListener| std::iter::from_fn(|| socket.accept().ok()).count();
            sockets.iter().map(count).collect::<Vec<_>>()
        };
        let _clients = connect();
        assert_eq!(waiting(), [100, 0, 0]);
        sockets.iter().for_each(|socket| rustix::net::listen(socket, BACKLOG).unwrap());
        let _more = connect();
        let spread = waiting();
        assert!(spread.iter().sum::<usize>() == 100 && spread.iter().all(|count| *count > 0), "{spread:?}");
    }

    #[test]
    fn what_is_accepted_does_not_delay_small_answers() {
        let sockets = for_workers(vec![here()], 1).unwrap();
        let _client = TcpStream::connect(sockets[0].local_addr().unwrap()).unwrap();
        let accepted = loop {
            match sockets[0].accept() {
                Ok((accepted, _)) => break accepted,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        };
        assert!(accepted.nodelay().unwrap());
    }
}
