//! The TLS types of a build without the cargo feature `tls`: enums without variants, so that no value exists.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use super::{FileProblem, Received, TlsSettings};

/// The TLS configuration of a server. In this build the type has no value.
#[derive(Clone, Debug)]
pub enum Tls {}

impl Tls {
    /// Returns an error: this build has no TLS.
    pub fn load(_: TlsSettings) -> Result<Tls, Vec<FileProblem>> {
        Err(vec![("certificate_file", "is set, but this build has no TLS (cargo feature tls)".to_owned())])
    }

    /// Never called, since the type has no value.
    pub fn reload(&self) -> Result<String, String> {
        match *self {}
    }

    pub(in crate::http) fn handshake_timeout(&self) -> Duration {
        match *self {}
    }

    pub(in crate::http) fn session(&self) -> Box<Session> {
        match *self {}
    }
}

/// The TLS state of one connection. In this build the type has no value.
pub(in crate::http) enum Session {}

impl Session {
    pub(in crate::http) fn receive(&mut self, _: &[u8], _: &mut Vec<u8>) -> Result<Received, String> {
        match *self {}
    }

    pub(in crate::http) fn send(&mut self, _: &TcpStream, _: &[u8]) -> io::Result<usize> {
        match *self {}
    }

    pub(in crate::http) fn flush(&mut self, _: &TcpStream) -> io::Result<bool> {
        match *self {}
    }

    pub(in crate::http) fn written_bytes(&self) -> usize {
        match *self {}
    }

    pub(in crate::http) fn close(&mut self) {
        match *self {}
    }
}
