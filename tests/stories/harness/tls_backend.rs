//! A backend with TLS, which answers every push with 200 and records it.

use std::io::{self, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::backend::{Request, read_body, read_head};
use super::certificates::{Authority, Certificate};
use super::tls::certificate;

/// A backend with TLS. Its threads end with the process.
pub(crate) struct TlsBackend {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    n_connections: Arc<AtomicUsize>,
}

impl TlsBackend {
    /// Starts a backend with the certificate `own`. `clients`: signs the client certificates that the backend requires.
    pub(crate) fn start(own: &Certificate, clients: Option<&Authority>) -> TlsBackend {
        let config = server_config(own, clients);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("a port").port();
        let backend = TlsBackend { port, requests: Arc::default(), n_connections: Arc::default() };
        let (requests, n_connections) = (Arc::clone(&backend.requests), Arc::clone(&backend.n_connections));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                n_connections.fetch_add(1, Ordering::Relaxed);
                let (config, requests) = (Arc::clone(&config), Arc::clone(&requests));
                std::thread::spawn(move || serve(config, stream, &requests));
            }
        });
        backend
    }

    /// Returns `https://host:port`.
    pub(crate) fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Returns all requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn n_connections(&self) -> usize {
        self.n_connections.load(Ordering::Relaxed)
    }
}

fn server_config(own: &Certificate, clients: Option<&Authority>) -> Arc<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider supports the versions");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(certificate(&authority.own.certificate)).expect("the certificate is an authority's");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.expect("an authority"))
        }
    };
    let key = PrivateKeyDer::from_pem_file(&own.key).expect("a key");
    Arc::new(builder.with_single_cert(vec![certificate(&own.certificate)], key).expect("the key of the certificate"))
}

fn serve(config: Arc<ServerConfig>, stream: TcpStream, requests: &Mutex<Vec<Request>>) -> io::Result<()> {
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    while let Some(mut request) = read_head(&mut stream)? {
        request.body = read_body(&mut stream, &request)?;
        requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")?;
    }
    Ok(())
}
