//! kmonitor: large answers arrive whole at slow readers, cost memory once, and are not sent to clients that have them.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::FromRawFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::harness::http::Client;
use crate::harness::{Kmonitor, ZooKeeper, cluster, configs, wait_until};

const DEADLINE: Duration = Duration::from_secs(120);
const N_MODULES: usize = 40;
const N_PARTITIONS: usize = 100;
/// The lines for Zabbix, whose keys have the long names of the modules.
const PAGE: &str = "/delay?format=zabbix";

/// Returns a ZooKeeper with the modules, which these stories share; the first call starts it.
fn zookeeper() -> &'static ZooKeeper {
    static SHARED: OnceLock<ZooKeeper> = OnceLock::new();
    SHARED.get_or_init(|| {
        let zookeeper = ZooKeeper::start();
        let topic = cluster().new_topic("large", i32::try_from(N_PARTITIONS).unwrap());
        let zk = zookeeper.client();
        for module in 0..N_MODULES {
            let group = format!("/consumers/{}-{module:02}/offsets/{topic}", "m".repeat(120));
            assert!(zk.create(&group, ""));
            (0..N_PARTITIONS).for_each(|partition| assert!(zk.create(&format!("{group}/{partition}"), "0")));
        }
        zookeeper
    })
}

/// A kmonitor of 4,000 partitions; its page for Zabbix has more than half a megabyte.
struct Large {
    kmonitor: Kmonitor,
    page: String,
}

impl Large {
    fn start() -> Large {
        let config = configs::kmonitor_for("", &[("large", &zookeeper().address())])
            .set("large.broker_hosts", cluster().broker_list())
            .set("base.poll_interval_ms", 60_000);
        let mut kmonitor = Kmonitor::start(&config);
        kmonitor.wait_until_ready();
        wait_until(DEADLINE, "all delays are known", || {
            kmonitor.get(PAGE).text().lines().count() == N_MODULES * N_PARTITIONS
        });
        let page = kmonitor.get(PAGE).text();
        assert!(page.len() > 500_000, "{}", page.len());
        Large { kmonitor, page }
    }

    /// Sends a request on a connection whose segments and buffers are as small as those of a distant client.
    fn request_slowly(&self, target: &str) -> TcpStream {
        let mut socket = connect_small(&self.kmonitor.address);
        write!(socket, "GET {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
        socket
    }
}

/// Connects with a receive buffer of 4 KiB and segments of 1,448 bytes.
fn connect_small(address: &str) -> TcpStream {
    let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
    let option = |socket, level, name, value: libc::c_int| {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the option is an int, which lives for the call.
        assert_eq!(unsafe { libc::setsockopt(socket, level, name, (&raw const value).cast(), length) }, 0);
    };
    // SAFETY: plain system calls. The address lives for the call, and the socket is owned by the stream alone.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        assert!(socket >= 0);
        let stream = TcpStream::from_raw_fd(socket);
        option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 4096);
        option(socket, libc::IPPROTO_TCP, libc::TCP_MAXSEG, 1448);
        let mut to: libc::sockaddr_in = std::mem::zeroed();
        to.sin_family = libc::AF_INET as libc::sa_family_t;
        to.sin_port = port.to_be();
        to.sin_addr.s_addr = u32::from_be_bytes([127, 0, 0, 1]).to_be();
        let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        assert_eq!(libc::connect(socket, (&raw const to).cast(), length), 0);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }
}

/// Reads until the end of the stream; returns the body.
fn read_rest(mut socket: TcpStream, pause_each_10_kib: Duration) -> String {
    let mut bytes = Vec::new();
    loop {
        let mut chunk = (&mut socket).take(10 << 10);
        if chunk.read_to_end(&mut bytes).unwrap() == 0 {
            break;
        }
        // The pace of the client, 100 KB/s: it waits for nothing.
        std::thread::sleep(pause_each_10_kib);
    }
    let text = String::from_utf8(bytes).unwrap();
    text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}

#[test]
fn slow_readers_get_large_answers_whole_and_share_their_memory() {
    let large = Large::start();
    let body = read_rest(large.request_slowly(PAGE), Duration::from_millis(100));
    assert!(body == large.page, "{} of {} bytes", body.len(), large.page.len());

    let before = large.kmonitor.daemon.resident_bytes();
    let sockets: Vec<TcpStream> = (0..150).map(|_| large.request_slowly(PAGE)).collect();
    // Each connection has its answer under way when it can be read from.
    for socket in &sockets {
        socket.peek(&mut [0]).unwrap();
    }
    assert_eq!(large.kmonitor.get("/healthz").status, 200);
    let grown = large.kmonitor.daemon.resident_bytes().saturating_sub(before);
    eprintln!("150 unread answers of {} bytes: {} KiB more", large.page.len(), grown >> 10);
    // Copies would be more than 60 MB, of which the kernel takes a small part.
    assert!(grown < 20 << 20, "{grown} bytes for 150 unread answers of {}", large.page.len());
    // All at the same time: a client that takes nothing for 10 s is cut off.
    std::thread::scope(|scope| {
        for socket in sockets {
            scope.spawn(|| {
                let body = read_rest(socket, Duration::ZERO);
                assert!(body == large.page, "{} of {} bytes", body.len(), large.page.len());
            });
        }
    });
}

#[test]
fn a_client_that_has_the_current_page_gets_304_and_head_gets_no_body() {
    let large = Large::start();
    let mut client = Client::connect(&large.kmonitor.address).unwrap();
    for target in ["/delay", PAGE, "/delay?cluster=large", "/v1/zabbix?timestamps=1", "/v1/zabbix/discovery"] {
        let whole = client.get(target).unwrap();
        let etag = whole.header("ETag").unwrap_or_else(|| panic!("{target}: {:?}", whole.headers)).to_owned();
        assert!(whole.header("Age").unwrap().parse::<u64>().unwrap() <= 300, "{target}: {:?}", whole.headers);
        assert_eq!(whole.header("Cache-Control"), Some("no-cache"), "{target}");
        let again = client.request("GET", target, &[("If-None-Match", &format!("\"x\", W/{etag}"))], b"").unwrap();
        assert_eq!((again.status, again.header("ETag")), (304, Some(&*etag)), "{target}");
        assert_eq!(client.request("GET", target, &[("If-None-Match", "\"x\"")], b"").unwrap().body, whole.body);
        let head = client.request("HEAD", target, &[], b"").unwrap();
        assert_eq!((head.status, head.header("ETag")), (200, Some(&*etag)), "{target}");
        assert_eq!(head.header("Content-Length"), Some(&*whole.body.len().to_string()), "{target}");
    }
    // 10,000 of them on one connection, none of which renders or sends the page.
    let etag = client.get(PAGE).unwrap().header("ETag").unwrap().to_owned();
    let before = large.kmonitor.daemon.peak_resident_bytes();
    let request = format!("GET {PAGE} HTTP/1.1\r\nHost: h\r\nIf-None-Match: {etag}\r\n\r\n");
    for _ in 0..100 {
        client.send_raw(request.repeat(100).as_bytes()).unwrap();
        for _ in 0..100 {
            assert_eq!(client.read_response().unwrap().status, 304);
        }
    }
    let grown = large.kmonitor.daemon.peak_resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes for 10,000 answers 304");
    assert_eq!(large.kmonitor.get(PAGE).text(), large.page);
}

#[test]
fn ten_thousand_requests_and_a_thousand_slow_readers_leave_kmonitor_responsive_and_small() {
    const N_SLOW: usize = 1_000;
    const N_REQUESTS: usize = 10_000;
    kafka_http_wrapper::daemon::raise_open_files();
    let large = Large::start();
    let before = large.kmonitor.daemon.resident_bytes();
    let slow = |_| {
        let socket = large.request_slowly(PAGE);
        socket.set_nonblocking(true).unwrap();
        (socket, 0)
    };
    let mut readers: Vec<(TcpStream, usize)> = (0..N_SLOW).map(slow).collect();
    std::thread::scope(|scope| {
        // A cron job gone wild: 10,000 requests as fast as they are answered.
        let cron = scope.spawn(|| {
            let targets = ["/v1/zabbix", "/v1/zabbix?level=partition&module=m*-00", "/delay?module=none", "/healthz"];
            let mut clients: Vec<Client> =
                targets.iter().map(|_| Client::connect(&large.kmonitor.address).unwrap()).collect();
            let began = Instant::now();
            for round in 0..N_REQUESTS / 100 {
                let (client, target) = (&mut clients[round % 4], targets[round % 4]);
                client.send_raw(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").repeat(100).as_bytes()).unwrap();
                for _ in 0..100 {
                    let status = client.read_response().unwrap().status;
                    assert_eq!(status, if target.ends_with("none") { 404 } else { 200 }, "{target}");
                }
            }
            began.elapsed()
        });
        // Meanwhile each slow reader takes 2 KiB every 100 ms, and others are served.
        while !cron.is_finished() {
            readers.iter_mut().for_each(|reader| read_some(reader, 2 << 10));
            assert_eq!(large.kmonitor.get("/healthz").status, 200);
            std::thread::sleep(Duration::from_millis(100));
        }
        let took = cron.join().expect("each request is answered");
        let grown = large.kmonitor.daemon.peak_resident_bytes().saturating_sub(before);
        eprintln!("{N_REQUESTS} requests in {took:?}; {N_SLOW} slow readers: {} KiB more", grown >> 10);
        // A copy for each reader would be more than 500 MB.
        assert!(grown < 64 << 20, "{grown} bytes for {N_SLOW} readers of {} bytes", large.page.len());
    });
    // None was cut off: some read on to the end.
    readers.truncate(20);
    wait_until(DEADLINE, "the answers are read", || {
        readers.iter_mut().for_each(|reader| read_some(reader, usize::MAX));
        readers.iter().all(|(_, read)| large.page.len() < *read)
    });
}

/// Reads at most `max` bytes of those that have arrived.
fn read_some((socket, read): &mut (TcpStream, usize), max: usize) {
    let (mut bytes, until) = ([0; 2 << 10], read.saturating_add(max));
    while *read < until {
        match socket.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => *read += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("an answer was cut: {error}"),
        }
    }
}
