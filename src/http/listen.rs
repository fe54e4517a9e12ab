//! Opens listening sockets and accepts connections from them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Number of connections that may wait in the kernel to be accepted. The kernel limits it to `net.core.somaxconn`.
pub(super) const BACKLOG: usize = 4096;

/// Where a server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// One address and port.
    At(SocketAddr),
    /// This port on all addresses of the machine, IPv6 and IPv4.
    Everywhere(u16),
}

impl Listen {
    /// Opens a non-blocking listening socket.
    pub(super) fn open(self) -> io::Result<TcpListener> {
        match self {
            Listen::At(address) => listen(address, None),
            Listen::Everywhere(port) => listen((Ipv6Addr::UNSPECIFIED, port).into(), Some(false))
                // On a machine without IPv6 this listens on IPv4 only.
                .or_else(|_| listen((Ipv4Addr::UNSPECIFIED, port).into(), None)),
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listen::At(address) => write!(formatter, "{address}"),
            Listen::Everywhere(port) => write!(formatter, "port {port} on all addresses"),
        }
    }
}

fn listen(address: SocketAddr, only_v6: Option<bool>) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(only_v6) = only_v6 {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG as i32)?;
    Ok(socket.into())
}

/// Accepts a connection. Its socket is created non-blocking and close-on-exec. The address of an IPv4 client is an IPv4
/// address, also if the listening socket is for IPv6 and IPv4.
pub(super) fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    // SAFETY: accept4 writes an address of at most `length` bytes into `storage` and its length into `length`; both
    // live through the call. The descriptor it returns is new and has no other owner.
    let (socket, address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            match libc::accept4(listener.as_raw_fd(), storage.cast(), length, flags) {
                -1 => Err(io::Error::last_os_error()),
                descriptor => Ok(TcpStream::from_raw_fd(descriptor)),
            }
        })?
    };
    let peer = address.as_socket().ok_or_else(|| io::Error::other("the peer has no IP address"))?;
    Ok((socket, SocketAddr::new(peer.ip().to_canonical(), peer.port())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_client_of_a_socket_for_both_versions_has_its_ipv4_address() {
        let listener = Listen::Everywhere(0).open().unwrap();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port())).unwrap();
        listener.set_nonblocking(false).unwrap();
        assert_eq!(accept(&listener).unwrap().1, client.local_addr().unwrap());
    }
}
