//! Pictures of the pages of all daemons, of sample data: `make screenshots`.
//!
//! The first argument is the folder of the sample pages, which unit tests write; the second is the folder of the
//! pictures. A small server serves the pages to a headless Chromium.

#![allow(clippy::print_stdout, reason = "it prints what it writes")]

#[path = "../tests/stories/harness/mod.rs"]
mod harness;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use harness::chromium::{self, Chromium};

/// Name of the picture, name of the page, size of the window, colour scheme.
const PICTURES: [(&str, &str, (u32, u32), &str); 15] = [
    ("healthy", "healthy", (1280, 620), "light"),
    ("late", "late", (1280, 620), "light"),
    ("dark", "late", (1280, 620), "dark"),
    ("partitions", "open", (1280, 900), "light"),
    ("away", "away", (1280, 620), "light"),
    ("phone", "late", (390, 844), "light"),
    ("phone-dark", "late", (390, 844), "dark"),
    ("ktransfer", "ktransfer", (1280, 620), "light"),
    ("ktransfer-dark", "ktransfer", (1280, 620), "dark"),
    ("ktransfer-details", "ktransfer-open", (1280, 900), "light"),
    ("ktransfer-phone", "ktransfer", (390, 844), "light"),
    ("kproxy", "kproxy", (1280, 1000), "light"),
    ("kproxy-dark", "kproxy", (1280, 1000), "dark"),
    ("kproxy-details", "kproxy-open", (1280, 700), "light"),
    ("kproxy-phone", "kproxy", (390, 844), "dark"),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(pages), Some(pictures)) = (arguments.next(), arguments.next()) else {
        println!("usage: screenshots FOLDER_OF_PAGES FOLDER_OF_PICTURES");
        return ExitCode::from(2);
    };
    let Some(binary) = chromium::find() else { return ExitCode::FAILURE };
    fs::create_dir_all(&pictures).expect("the folder of the pictures");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let pages = pages.clone();
            std::thread::spawn(move || serve(&stream, &pages));
        }
    });
    let mut browser = Chromium::start(binary);
    for (name, page, (width, height), scheme) in PICTURES {
        browser.resize(width, height);
        browser.prefer(scheme);
        browser.open(&format!("http://{address}/{page}.html"));
        let file = pictures.join(name).with_extension("png");
        browser.screenshot(&file);
        println!("{} of {page}, {width} x {height}, {scheme}", file.display());
    }
    ExitCode::SUCCESS
}

/// Answers one request with a file of the folder.
fn serve(mut stream: &TcpStream, folder: &Path) {
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line).is_err() {
        return;
    }
    let path = line.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
    let content = fs::read(folder.join(path)).unwrap_or_default();
    let kind = match Path::new(path).extension().and_then(|extension| extension.to_str()) {
        Some("css") => "text/css",
        Some("js") => "text/javascript",
        Some("svg") => "image/svg+xml",
        _ => "text/html",
    };
    let status = if content.is_empty() { "404 Not Found" } else { "200 OK" };
    let length = content.len();
    // If the browser closes the connection early, it needs no answer.
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    .and_then(|()| stream.write_all(&content));
}
