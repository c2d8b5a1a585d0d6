//! Ports that are kept for servers: a server that is to come back on its port, or that others are told of
//! before it runs, must find its port free then.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::io::Result;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};

/// A port of loopback, kept for as long as this lives.
///
/// The system gives it to nobody who asks for any port, and lets nobody connect from it, since a socket
/// is bound to it. A server may listen on it all the same: the socket does not listen, and both are bound
/// with `SO_REUSEADDR` (`socket(7)`), as servers of Go, Java, libvirt and tokio are. Who connects while
/// none listens is refused.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _held: OwnedFd,
}

impl Port {
    /// One that was free.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn hold() -> Self {
        Self::try_hold().expect("a free port")
    }

    /// So many that were free.
    ///
    /// # Panics
    /// When there are not.
    #[must_use]
    pub fn several(count: usize) -> Vec<Self> {
        (0..count).map(|_| Self::hold()).collect()
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    fn try_hold() -> Result<Self> {
        let held = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        set_socket_reuseaddr(&held, true)?;
        bind(&held, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
        let number = SocketAddrV4::try_from(getsockname(&held)?)?.port();
        Ok(Self { number, _held: held })
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_kept_port_is_refused_until_its_server_listens_and_stays_kept_when_it_is_gone() {
        let port = Port::hold();
        let address = (Ipv4Addr::LOCALHOST, port.number());
        for _ in 0..3 {
            assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            let listener = std::net::TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(address).unwrap();
            drop((listener.accept().unwrap(), client, listener));
        }
    }

    /// As who connects from any port, or listens on any.
    #[test]
    fn whoever_does_not_ask_for_it_as_a_server_does_finds_it_in_use() {
        let other = |port: &Port| {
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port.number()))
        };
        let (kept, also) = (Port::hold(), Port::hold());
        assert_ne!(kept.number(), also.number());
        assert_eq!(other(&kept), Err(rustix::io::Errno::ADDRINUSE));
    }
}
