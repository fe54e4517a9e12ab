//! A small ZooKeeper client that implements the wire protocol itself.
//!
//! It does not use the client of the daemons, so that the stories check the daemons independently. Every call
//! has a deadline. The client sends no pings, so its session expires [`SESSION`] after the last call.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::Duration;

/// The session timeout: the server keeps the session and its ephemeral nodes for this time after the last call.
const SESSION: Duration = Duration::from_secs(30);
const CALL_DEADLINE: Duration = Duration::from_secs(5);

const CREATE: i32 = 1;
const DELETE: i32 = 2;
const GET_DATA: i32 = 4;
const SET_DATA: i32 = 5;
const GET_CHILDREN: i32 = 8;
const CLOSE: i32 = -11;

const OK: i32 = 0;
const NO_NODE: i32 = -101;
const NODE_EXISTS: i32 = -110;

/// One session; dropping it closes the session, which deletes its ephemeral nodes.
pub(crate) struct ZkClient {
    stream: Mutex<TcpStream>,
}

/// A node's data, version and owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) data: Vec<u8>,
    pub(crate) version: i32,
    /// The id of the session that owns an ephemeral node; 0 for a persistent node.
    pub(crate) ephemeral_owner: i64,
}

impl ZkClient {
    /// Opens a session with the server at `host:port`.
    pub(crate) fn connect(address: &str) -> io::Result<ZkClient> {
        let address = address.parse().map_err(|_| io::Error::other(format!("{address} is not IP:PORT")))?;
        let mut stream = TcpStream::connect_timeout(&address, CALL_DEADLINE)?;
        stream.set_read_timeout(Some(CALL_DEADLINE))?;
        stream.set_write_timeout(Some(CALL_DEADLINE))?;
        stream.set_nodelay(true)?;
        let mut connect = ZkRequest::default();
        connect.int(0).long(0).int(SESSION.as_millis() as i32).long(0).buffer(&[0; 16]);
        send(&mut stream, &connect)?;
        receive(&mut stream)?;
        Ok(ZkClient { stream: Mutex::new(stream) })
    }

    /// Reads a node; returns `None` if it does not exist.
    pub(crate) fn get(&self, path: &str) -> Option<Node> {
        let mut request = ZkRequest::default();
        request.text(path).bool(false);
        let (code, answer) = self.call(GET_DATA, &request);
        if code == NO_NODE {
            return None;
        }
        expect(code, OK, "get", path);
        let mut answer = ZkResponse(&answer);
        let data = answer.buffer();
        answer.skip(32); // czxid, mzxid, ctime, mtime.
        let version = answer.int();
        answer.skip(8);
        Some(Node { data, version, ephemeral_owner: answer.long() })
    }

    /// Reads a node's data as text; returns `None` if the node does not exist.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        self.get(path).map(|node| String::from_utf8_lossy(&node.data).into_owned())
    }

    /// As [`ZkClient::read`], but fails if the server does not answer, after which the session cannot be used.
    pub(crate) fn try_read(&self, path: &str) -> io::Result<Option<String>> {
        let mut request = ZkRequest::default();
        request.text(path).bool(false);
        let (code, answer) = self.try_call(GET_DATA, &request)?;
        match code {
            OK => Ok(Some(String::from_utf8_lossy(&ZkResponse(&answer).buffer()).into_owned())),
            NO_NODE => Ok(None),
            code => Err(io::Error::other(format!("ZooKeeper error {code}"))),
        }
    }

    /// Returns the sorted names of a node's children; empty if the node does not exist.
    pub(crate) fn children(&self, path: &str) -> Vec<String> {
        let mut request = ZkRequest::default();
        request.text(path).bool(false);
        let (code, answer) = self.call(GET_CHILDREN, &request);
        if code == NO_NODE {
            return Vec::new();
        }
        expect(code, OK, "children", path);
        let mut answer = ZkResponse(&answer);
        let n = answer.int();
        let mut names: Vec<String> = (0..n).map(|_| String::from_utf8_lossy(&answer.buffer()).into_owned()).collect();
        names.sort();
        names
    }

    /// Creates a persistent node and its missing parents. Returns false if the node already exists.
    pub(crate) fn create(&self, path: &str, data: &str) -> bool {
        let (parent, _) = path.rsplit_once('/').expect("a path begins with /");
        if !parent.is_empty() && self.get(parent).is_none() {
            self.create(parent, "");
        }
        self.create_one(path, data, false)
    }

    /// Creates a persistent node, whose parents exist, that only a client at another address may read.
    pub(crate) fn create_denied(&self, path: &str, data: &str) {
        assert!(self.create_for(("ip", "192.0.2.1"), path, data, false), "{path} exists");
    }

    /// Creates an ephemeral node of this session. Returns false if the node already exists.
    pub(crate) fn create_ephemeral(&self, path: &str, data: &str) -> bool {
        self.create_one(path, data, true)
    }

    /// Overwrites the data of a node; panics if the node does not exist.
    pub(crate) fn write(&self, path: &str, data: &str) {
        let mut request = ZkRequest::default();
        request.text(path).buffer(data.as_bytes()).int(-1);
        expect(self.call(SET_DATA, &request).0, OK, "write", path);
    }

    /// Deletes a node without children. Returns false if the node does not exist.
    pub(crate) fn delete(&self, path: &str) -> bool {
        let mut request = ZkRequest::default();
        request.text(path).int(-1);
        let code = self.call(DELETE, &request).0;
        if code != NO_NODE {
            expect(code, OK, "delete", path);
        }
        code == OK
    }

    fn create_one(&self, path: &str, data: &str, ephemeral: bool) -> bool {
        self.create_for(("world", "anyone"), path, data, ephemeral)
    }

    /// Creates a node with all rights for the clients of an ACL, scheme and id.
    fn create_for(&self, (scheme, id): (&str, &str), path: &str, data: &str, ephemeral: bool) -> bool {
        let all_rights = 31;
        let mut request = ZkRequest::default();
        request.text(path).buffer(data.as_bytes());
        request.int(1).int(all_rights).text(scheme).text(id).int(i32::from(ephemeral));
        let code = self.call(CREATE, &request).0;
        if code != NODE_EXISTS {
            expect(code, OK, "create", path);
        }
        code == OK
    }

    fn call(&self, operation: i32, request: &ZkRequest) -> (i32, Vec<u8>) {
        let answer = self.try_call(operation, request);
        answer.unwrap_or_else(|error| panic!("no answer from ZooKeeper: {error}"))
    }

    fn try_call(&self, operation: i32, request: &ZkRequest) -> io::Result<(i32, Vec<u8>)> {
        let mut stream = self.stream.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut frame = ZkRequest::default();
        frame.int(1).int(operation);
        frame.0.extend_from_slice(&request.0);
        send(&mut stream, &frame)?;
        let answer = receive(&mut stream)?;
        // A header is the xid, the zxid and the error code.
        if answer.len() < 16 {
            return Err(io::Error::other("not a ZooKeeper answer"));
        }
        let mut reader = ZkResponse(&answer);
        reader.skip(12);
        Ok((reader.int(), reader.0.to_vec()))
    }
}

impl Drop for ZkClient {
    fn drop(&mut self) {
        let mut frame = ZkRequest::default();
        frame.int(1).int(CLOSE);
        let mut stream = self.stream.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if send(&mut stream, &frame).is_ok() {
            // The server has deleted the ephemeral nodes when it responds, so the response is awaited.
            let _ = receive(&mut stream);
        }
    }
}

#[track_caller]
fn expect(code: i32, expected: i32, verb: &str, path: &str) {
    assert_eq!(code, expected, "ZooKeeper: {verb} {path}");
}

fn send(stream: &mut TcpStream, bytes: &ZkRequest) -> io::Result<()> {
    let mut frame = (bytes.0.len() as i32).to_be_bytes().to_vec();
    frame.extend_from_slice(&bytes.0);
    stream.write_all(&frame)
}

fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > 64 << 20 {
        return Err(io::Error::other("not a ZooKeeper answer"));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

#[derive(Default)]
struct ZkRequest(Vec<u8>);

impl ZkRequest {
    fn int(&mut self, value: i32) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }
    fn long(&mut self, value: i64) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }
    fn bool(&mut self, value: bool) -> &mut Self {
        self.0.push(u8::from(value));
        self
    }
    fn buffer(&mut self, value: &[u8]) -> &mut Self {
        self.int(value.len() as i32);
        self.0.extend_from_slice(value);
        self
    }
    fn text(&mut self, value: &str) -> &mut Self {
        self.buffer(value.as_bytes())
    }
}

struct ZkResponse<'a>(&'a [u8]);

impl ZkResponse<'_> {
    fn skip(&mut self, n_bytes: usize) {
        self.0 = &self.0[n_bytes..];
    }
    fn int(&mut self) -> i32 {
        let value = i32::from_be_bytes(self.0[..4].try_into().expect("four bytes"));
        self.skip(4);
        value
    }
    fn long(&mut self) -> i64 {
        let value = i64::from_be_bytes(self.0[..8].try_into().expect("eight bytes"));
        self.skip(8);
        value
    }
    fn buffer(&mut self) -> Vec<u8> {
        let length = self.int().max(0) as usize;
        let value = self.0[..length].to_vec();
        self.skip(length);
        value
    }
}
