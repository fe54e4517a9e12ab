//! The TLS types of a build without the cargo feature `tls`: enums without variants, so that no value exists.

use std::io::{self, Write};

use super::{Decrypted, TlsFailure};
use crate::kafka::config::TlsConfig;

/// The TLS configuration of a client. In this build the type has no value.
#[derive(Clone, Debug)]
pub(in crate::kafka) enum TlsClient {}

impl TlsClient {
    /// Returns an error: this build has no TLS.
    pub(in crate::kafka) fn new(_: &TlsConfig) -> Result<TlsClient, String> {
        Err("TLS is configured, but this build has no TLS (cargo feature tls)".to_owned())
    }

    pub(in crate::kafka) fn session(&self, _: &str) -> Result<TlsSession, TlsFailure> {
        match *self {}
    }
}

/// The TLS state of one connection. In this build the type has no value.
#[derive(Debug)]
pub(in crate::kafka) enum TlsSession {}

impl TlsSession {
    pub(in crate::kafka) fn is_handshaking(&self) -> bool {
        match *self {}
    }

    pub(in crate::kafka) fn decrypt(&mut self, _: &mut [u8]) -> Result<Decrypted, TlsFailure> {
        match *self {}
    }

    pub(in crate::kafka) fn advance_handshake(&mut self) -> Result<(), TlsFailure> {
        match *self {}
    }

    pub(in crate::kafka) fn input_space(&mut self) -> &mut [u8] {
        match *self {}
    }

    pub(in crate::kafka) fn add_input(&mut self, _: usize) -> Result<(), TlsFailure> {
        match *self {}
    }

    pub(in crate::kafka) fn encrypt(&mut self, _: &[u8]) -> usize {
        match *self {}
    }

    pub(in crate::kafka) fn has_output(&self) -> bool {
        match *self {}
    }

    pub(in crate::kafka) fn write_output(&mut self, _: &mut dyn Write) -> io::Result<usize> {
        match *self {}
    }

    pub(in crate::kafka) fn close(&mut self) {
        match *self {}
    }

    pub(in crate::kafka) fn closed_early(&self) -> TlsFailure {
        match *self {}
    }
}
