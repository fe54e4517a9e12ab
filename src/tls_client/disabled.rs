//! The TLS types of a build without the cargo feature `tls`: enums without variants, so that no value exists.

use std::io::{self, Write};

use super::config::TlsConfig;
use super::{Decrypted, TlsFailure};

/// The TLS configuration of a client. In this build the type has no value.
#[derive(Clone, Debug)]
pub(crate) enum TlsClient {}

impl TlsClient {
    /// Returns an error: this build has no TLS.
    pub(crate) fn new(_: &TlsConfig) -> Result<TlsClient, String> {
        Err("TLS is configured, but this build has no TLS (cargo feature tls)".to_owned())
    }

    pub(crate) fn session(&self, _: &str) -> Result<TlsSession, TlsFailure> {
        match *self {}
    }
}

/// The TLS state of one connection. In this build the type has no value.
#[derive(Debug)]
pub(crate) enum TlsSession {}

impl TlsSession {
    pub(crate) fn is_handshaking(&self) -> bool {
        match *self {}
    }

    pub(crate) fn decrypt(&mut self, _: &mut [u8]) -> Result<Decrypted, TlsFailure> {
        match *self {}
    }

    pub(crate) fn advance_handshake(&mut self) -> Result<(), TlsFailure> {
        match *self {}
    }

    pub(crate) fn input_space(&mut self) -> &mut [u8] {
        match *self {}
    }

    pub(crate) fn add_input(&mut self, _: usize) -> Result<(), TlsFailure> {
        match *self {}
    }

    pub(crate) fn encrypt(&mut self, _: &[u8]) -> usize {
        match *self {}
    }

    pub(crate) fn has_output(&self) -> bool {
        match *self {}
    }

    pub(crate) fn write_output(&mut self, _: &mut dyn Write) -> io::Result<usize> {
        match *self {}
    }

    pub(crate) fn close(&mut self) {
        match *self {}
    }

    pub(crate) fn closed_early(&self) -> TlsFailure {
        match *self {}
    }
}
