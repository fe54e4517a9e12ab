//! What stands for TLS in a build without it: types without values.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use super::{FileProblem, Received, TlsSettings};

/// There is none in this build.
#[derive(Clone, Debug)]
pub enum Tls {}

impl Tls {
    /// Refuses.
    pub fn load(_: TlsSettings) -> Result<Tls, Vec<FileProblem>> {
        Err(vec![("certificate_file", "is given, but this build has no TLS".to_owned())])
    }

    /// Never called.
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

/// There is none in this build.
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

    pub(in crate::http) fn close(&mut self) {
        match *self {}
    }
}
