//! The backend: nginx with one process, or a thread for each connection in this process: where nginx is not installed,
//! and where answers take a time.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::harness::process::{Process, folder};
use crate::harness::{free_port, wait_until};

/// A backend that answers every request with 200; dropping it ends nginx.
pub(crate) struct Sink {
    /// What the backend is.
    pub(crate) name: &'static str,
    /// `host:port`.
    pub(crate) address: String,
    _nginx: Option<Process>,
}

impl Sink {
    /// Starts a backend whose answers take `latency`.
    pub(crate) fn start(latency: Duration) -> Sink {
        if !latency.is_zero() {
            return start_own("a thread for each connection", latency);
        }
        let nginx = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        match nginx {
            Some(path) => start_nginx(path),
            None => start_own("a thread for each connection (nginx is not installed)", latency),
        }
    }
}

fn start_nginx(path: &str) -> Sink {
    let (folder, port) = (folder("nginx"), free_port());
    let root = folder.display();
    let config = format!(
        "daemon off; master_process off; worker_processes 1; error_log {root}/error.log; pid {root}/pid;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 600s; client_body_temp_path {root};\n\
         proxy_temp_path {root}; fastcgi_temp_path {root}; uwsgi_temp_path {root}; scgi_temp_path {root};\n\
         server {{ listen 127.0.0.1:{port}; location / {{ return 200 ok; }} }} }}\n"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, config).expect("a file in a temporary folder");
    let mut command = Command::new(path);
    command.arg("-c").arg(&file).arg("-e").arg(folder.join("start.log"));
    let process = Process::start("nginx", command, &folder.join("output"));
    wait_until(Duration::from_secs(10), "nginx listens", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
    Sink { name: "nginx", address: format!("127.0.0.1:{port}"), _nginx: Some(process) }
}

fn start_own(name: &'static str, latency: Duration) -> Sink {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream, latency));
        }
    });
    Sink { name, address, _nginx: None }
}

/// Answers the requests of a connection until the first error.
fn serve(mut stream: TcpStream, latency: Duration) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut line, mut body) = (String::new(), Vec::new());
    loop {
        let mut length = 0;
        loop {
            line.clear();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().ok()?
                }
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body).ok()?;
        thread::sleep(latency);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").ok()?;
    }
}
