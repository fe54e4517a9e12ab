//! A ZooKeeper server of many modules that computes its answers, and counts what it is asked for.
//!
//! It speaks what kmonitor needs: sessions, pings, the data of a node, of many nodes (MultiRead, unless it is to be
//! older than 3.6) and the names of children. The module `i` is `module_i` with the topic `topic_i`; a fifth of the
//! modules have stored an offset below the end of their logs.

use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const GET_DATA: i32 = 4;
const GET_CHILDREN: i32 = 8;
const PING: i32 = 11;
const MULTI_READ: i32 = 22;
const CLOSE_SESSION: i32 = -11;
const NO_NODE: i32 = -101;
const UNIMPLEMENTED: i32 = -6;

/// Every module of this number has messages that wait.
pub(crate) const ONE_OF: usize = 5;

/// The nodes.
#[derive(Clone, Debug)]
pub(crate) struct Nodes {
    pub(crate) modules: usize,
    pub(crate) partitions: usize,
    /// `host:port` of the brokers, by id.
    pub(crate) brokers: Vec<(String, u16)>,
    /// Whether the server is one of 3.6 or later.
    pub(crate) has_multi_read: bool,
}

/// A running server, until the process ends.
pub(crate) struct FakeZooKeeper {
    pub(crate) address: String,
    counts: Arc<Counts>,
}

/// What was requested, without pings.
#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    nodes: AtomicU64,
}

impl FakeZooKeeper {
    /// Starts a server of these nodes.
    pub(crate) fn start(nodes: Nodes) -> FakeZooKeeper {
        FakeZooKeeper::start_poisoned(nodes, None)
    }

    /// As [`FakeZooKeeper::start`]; who reads an offset of the module `poisoned` loses the connection, as with a node
    /// that is larger than a client accepts.
    pub(crate) fn start_poisoned(nodes: Nodes, poisoned: Option<usize>) -> FakeZooKeeper {
        let poisoned = poisoned.map(|index| format!("/consumers/module_{index}/offsets/topic_{index}/"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let counts = Arc::new(Counts::default());
        let counter = Arc::clone(&counts);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (nodes, counter, poisoned) = (nodes.clone(), Arc::clone(&counter), poisoned.clone());
                std::thread::spawn(move || {
                    // A client that ends its connection ends this thread.
                    let _ = serve(stream, &nodes, poisoned.as_deref(), &counter);
                });
            }
        });
        FakeZooKeeper { address, counts }
    }

    /// Returns the number of requests so far, without pings, and how many nodes they were for.
    pub(crate) fn requests(&self) -> (u64, u64) {
        (self.counts.requests.load(Ordering::Relaxed), self.counts.nodes.load(Ordering::Relaxed))
    }
}

fn serve(mut stream: TcpStream, nodes: &Nodes, poisoned: Option<&str>, counts: &Counts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(64 << 10, stream.try_clone()?);
    let handshake = frame(&mut reader)?;
    let timeout = handshake.get(12..16).ok_or(io::ErrorKind::InvalidData)?;
    // Protocol version, timeout, session id, password, not read-only.
    let answer = [&37_i32.to_be_bytes()[..], &[0; 4], timeout, &7_i64.to_be_bytes(), &16_i32.to_be_bytes(), &[1; 17]];
    stream.write_all(&answer.concat())?;
    let mut answers = Vec::new();
    loop {
        let request = frame(&mut reader)?;
        let int = |at: usize| request.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_be_bytes);
        let (xid, operation) = int(0).zip(int(4)).ok_or(io::ErrorKind::InvalidData)?;
        let path = int(8).and_then(|length| request.get(12..12 + usize::try_from(length).ok()?));
        let path = path.and_then(|path| std::str::from_utf8(path).ok()).unwrap_or_default();
        if operation != PING {
            counts.requests.fetch_add(1, Ordering::Relaxed);
            counts.nodes.fetch_add(u64::from(operation != MULTI_READ), Ordering::Relaxed);
        }
        let is_poisoned = |path: &str| poisoned.is_some_and(|poisoned| path.starts_with(poisoned));
        if is_poisoned(path) || (operation == MULTI_READ && paths(&request[8..]).iter().any(|path| is_poisoned(path))) {
            return Ok(());
        }
        let body = match operation {
            PING | CLOSE_SESSION => Ok(Vec::new()),
            GET_DATA => nodes.node(path).ok_or(NO_NODE),
            MULTI_READ if nodes.has_multi_read => {
                let paths = paths(&request[8..]);
                counts.nodes.fetch_add(paths.len() as u64, Ordering::Relaxed);
                Ok(nodes.many(&paths))
            }
            GET_CHILDREN => nodes.children(path).map(|names| list(&names)).ok_or(NO_NODE),
            _ => Err(UNIMPLEMENTED),
        };
        let (error, body) = body.map_or_else(|code| (code, Vec::new()), |body| (0, body));
        let length = i32::try_from(16 + body.len()).expect("an answer is short");
        for part in [&length.to_be_bytes()[..], &xid.to_be_bytes(), &9_i64.to_be_bytes(), &error.to_be_bytes(), &body] {
            answers.extend_from_slice(part);
        }
        // Answers to requests that arrived together are written together.
        if reader.buffer().len() < 4 || answers.len() > 256 << 10 || error == UNIMPLEMENTED {
            stream.write_all(&answers)?;
            answers.clear();
        }
        if error == UNIMPLEMENTED {
            // As a real server does.
            return Ok(());
        }
    }
}

fn frame(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let mut bytes = vec![0; u32::from_be_bytes(length).min(1 << 20) as usize];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Returns the paths of a MultiRead.
fn paths(mut request: &[u8]) -> Vec<String> {
    let mut paths = Vec::new();
    // The type, whether it ends here, an error; the path and whether to watch.
    while let Some((head, rest)) = request.split_at_checked(13).filter(|(head, _)| head[4] == 0) {
        let length = u32::from_be_bytes([head[9], head[10], head[11], head[12]]) as usize;
        let Some(path) = rest.get(..length) else { break };
        paths.push(String::from_utf8_lossy(path).into_owned());
        request = rest.get(length + 1..).unwrap_or_default();
    }
    paths
}

fn buffer(bytes: &[u8]) -> Vec<u8> {
    [&i32::try_from(bytes.len()).expect("it is short").to_be_bytes()[..], bytes].concat()
}

fn list(names: &[String]) -> Vec<u8> {
    let count = i32::try_from(names.len()).expect("it is short").to_be_bytes().to_vec();
    std::iter::once(count).chain(names.iter().map(|name| buffer(name.as_bytes()))).flatten().collect()
}

/// A time of modification in 2023, one child, and a last change of the children; everything else is 0.
fn stat() -> Vec<u8> {
    let (modified, changed) = (1_700_000_000_000_i64.to_be_bytes(), 9_i64.to_be_bytes());
    [&[0; 24][..], &modified, &[0; 24], &1_i32.to_be_bytes(), &changed].concat()
}

impl Nodes {
    /// The answer to a request for the data of a node.
    fn node(&self, path: &str) -> Option<Vec<u8>> {
        let data = self.data(path).or_else(|| self.children(path).map(|_| Vec::new()))?;
        Some([buffer(&data), stat()].concat())
    }

    /// The answer to a MultiRead.
    fn many(&self, paths: &[String]) -> Vec<u8> {
        let result = |path: &String| match self.node(path) {
            Some(node) => [&GET_DATA.to_be_bytes()[..], &[0; 5], &node].concat(),
            None => [&(-1_i32).to_be_bytes()[..], &[0], &NO_NODE.to_be_bytes(), &NO_NODE.to_be_bytes()].concat(),
        };
        let end = [&(-1_i32).to_be_bytes()[..], &[1], &(-1_i32).to_be_bytes()].concat();
        paths.iter().map(result).chain([end]).flatten().collect()
    }

    fn data(&self, path: &str) -> Option<Vec<u8>> {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match parts[..] {
            ["consumers", module, "offsets", topic, partition] => {
                let index = self.module(module, topic)?;
                self.partition(partition)?;
                Some(if index.is_multiple_of(ONE_OF) { b"0".to_vec() } else { b"1".to_vec() })
            }
            ["consumers", module, "owners", topic, partition] => {
                self.module(module, topic)?;
                self.partition(partition)?;
                Some(b"host-1-5f3a".to_vec())
            }
            ["brokers", "ids", id] => {
                let (host, port) = self.brokers.get(id.parse::<usize>().ok()?)?;
                Some(format!(r#"{{"endpoints":["PLAINTEXT://{host}:{port}"],"host":"{host}","port":{port}}}"#).into())
            }
            _ => None,
        }
    }

    fn children(&self, path: &str) -> Option<Vec<String>> {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match parts[..] {
            ["consumers"] => Some((0..self.modules).map(|index| format!("module_{index}")).collect()),
            ["consumers", module, "offsets" | "owners"] => {
                Some(vec![format!("topic_{}", module.strip_prefix("module_")?)])
            }
            ["consumers", _, "ids"] => Some(vec!["host-1-5f3a".to_owned()]),
            ["consumers", module, "offsets" | "owners", topic] => {
                self.module(module, topic)?;
                Some((0..self.partitions).map(|partition| partition.to_string()).collect())
            }
            ["brokers", "ids"] => Some((0..self.brokers.len()).map(|id| id.to_string()).collect()),
            _ => None,
        }
    }

    /// Returns the number of the module, if the topic is its own.
    fn module(&self, module: &str, topic: &str) -> Option<usize> {
        let index = module.strip_prefix("module_")?;
        let index = (topic.strip_prefix("topic_")? == index).then(|| index.parse().ok())??;
        (index < self.modules).then_some(index)
    }

    fn partition(&self, name: &str) -> Option<usize> {
        name.parse().ok().filter(|partition| *partition < self.partitions)
    }
}
