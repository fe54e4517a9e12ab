//! The part of ZooKeeper's wire protocol that the client speaks: encodes requests, decodes responses.
//!
//! A request is a frame: length, xid, operation, body. A response is a frame: length, xid, zxid, error, body. The
//! server answers the requests of a connection in their order. All functions are pure.

use std::time::Duration;

use crate::keeper::api::{Change, Lifetime, Node};

/// Longest response that is read. The largest one is the list of children of a node with very many children.
pub(super) const MAX_RESPONSE_BYTES: usize = 64 << 20;
/// Length of a connect request without its length field.
const CONNECT_REQUEST_BYTES: u32 = 45;
/// Length of a session's password.
pub(super) const PASSWORD_BYTES: usize = 16;

/// The xid of the responses to pings.
pub(super) const PING_XID: i32 = -2;
/// The xid of notifications. The client sets no watches, so it ignores them.
pub(super) const NOTIFICATION_XID: i32 = -1;

const CREATE: i32 = 1;
const DELETE: i32 = 2;
const GET_DATA: i32 = 4;
const SET_DATA: i32 = 5;
const GET_CHILDREN: i32 = 8;
const PING: i32 = 11;
const CHECK: i32 = 13;
const MULTI: i32 = 14;
const MULTI_READ: i32 = 22;
const CLOSE_SESSION: i32 = -11;
/// The type of a failed result in the response to a multi, and of the header that ends a multi.
const MULTI_ERROR: i32 = -1;

/// Error codes of the server.
pub(super) mod error {
    pub(crate) const OK: i32 = 0;
    /// In a multi: the change was not carried out, because another one failed.
    pub(crate) const RUNTIME_INCONSISTENCY: i32 = -2;
    /// The server does not know the operation, and closes the connection.
    pub(crate) const UNIMPLEMENTED: i32 = -6;
    pub(crate) const NO_NODE: i32 = -101;
    pub(crate) const NO_AUTH: i32 = -102;
    pub(crate) const BAD_VERSION: i32 = -103;
    pub(crate) const NODE_EXISTS: i32 = -110;
    pub(crate) const NOT_EMPTY: i32 = -111;
}

/// A response: its error code, and its body, which is empty after an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) error: i32,
    pub(super) body: Vec<u8>,
}

/// The head of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResponseHead {
    pub(super) xid: i32,
    /// Number of the latest change of the ensemble that the server has seen.
    pub(super) zxid: i64,
    pub(super) error: i32,
}

/// A session as the server identifies it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SessionKey {
    /// The session's id; 0 requests a new session.
    pub(super) id: i64,
    pub(super) password: [u8; PASSWORD_BYTES],
}

/// The answer to a connect request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connected {
    /// The session exists, with this timeout.
    Session(SessionKey, Duration),
    /// The requested session has ended.
    Expired,
}

/// A request without its xid, which [`Request::frame`] adds.
#[derive(Clone, Debug)]
pub(super) struct Request(Vec<u8>);

impl Request {
    fn new(operation: i32) -> Request {
        // The length and the xid are filled in by `frame`.
        let mut request = Request(vec![0; 8]);
        request.int(operation);
        request
    }

    pub(super) fn ping() -> Request {
        Request::new(PING)
    }

    pub(super) fn close_session() -> Request {
        Request::new(CLOSE_SESSION)
    }

    pub(super) fn get_data(path: &str) -> Request {
        let mut request = Request::new(GET_DATA);
        request.text(path).flag(false);
        request
    }

    pub(super) fn get_children(path: &str) -> Request {
        let mut request = Request::new(GET_CHILDREN);
        request.text(path).flag(false);
        request
    }

    pub(super) fn change(change: &Change) -> Request {
        let mut request = Request::new(operation_of(change));
        request.body_of(change);
        request
    }

    pub(super) fn multi(changes: &[Change]) -> Request {
        let mut request = Request::new(MULTI);
        for change in changes {
            request.int(operation_of(change)).flag(false).int(-1);
            request.body_of(change);
        }
        request.int(MULTI_ERROR).flag(true).int(-1);
        request
    }

    /// Reads several nodes.
    pub(super) fn multi_read<'a>(paths: impl IntoIterator<Item = &'a str>) -> Request {
        let mut request = Request::new(MULTI_READ);
        for path in paths {
            request.int(GET_DATA).flag(false).int(-1).text(path).flag(false);
        }
        request.int(MULTI_ERROR).flag(true).int(-1);
        request
    }

    /// Returns the frame of the request with this `xid`.
    pub(super) fn frame(mut self, xid: i32) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0[4..8].copy_from_slice(&xid.to_be_bytes());
        self.0
    }

    fn body_of(&mut self, change: &Change) {
        match change {
            Change::Check(path, version) => self.text(path).int(version.unwrap_or(-1)),
            Change::Create(path, data, lifetime) => {
                const ALL_RIGHTS: i32 = 31;
                self.text(path).buffer(data);
                self.int(1).int(ALL_RIGHTS).text("world").text("anyone");
                self.int(i32::from(*lifetime == Lifetime::Ephemeral))
            }
            Change::Write(path, data, version) => self.text(path).buffer(data).int(version.unwrap_or(-1)),
            Change::Delete(path, version) => self.text(path).int(*version),
        };
    }

    fn int(&mut self, value: i32) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    fn flag(&mut self, value: bool) -> &mut Self {
        self.0.push(u8::from(value));
        self
    }

    fn buffer(&mut self, value: &[u8]) -> &mut Self {
        self.int(i32::try_from(value.len()).unwrap_or(i32::MAX));
        self.0.extend_from_slice(value);
        self
    }

    fn text(&mut self, value: &str) -> &mut Self {
        self.buffer(value.as_bytes())
    }
}

fn operation_of(change: &Change) -> i32 {
    match change {
        Change::Check(..) => CHECK,
        Change::Create(..) => CREATE,
        Change::Write(..) => SET_DATA,
        Change::Delete(..) => DELETE,
    }
}

/// Returns the frame of a connect request: protocol version, last zxid seen, timeout, session, not read-only.
pub(super) fn connect_request(session_timeout: Duration, session: SessionKey, last_zxid: i64) -> Vec<u8> {
    let timeout_ms = i32::try_from(session_timeout.as_millis()).unwrap_or(i32::MAX);
    let mut request = Vec::with_capacity(CONNECT_REQUEST_BYTES as usize + 4);
    request.extend_from_slice(&CONNECT_REQUEST_BYTES.to_be_bytes());
    request.extend_from_slice(&[0; 4]);
    request.extend_from_slice(&last_zxid.to_be_bytes());
    request.extend_from_slice(&timeout_ms.to_be_bytes());
    request.extend_from_slice(&session.id.to_be_bytes());
    request.extend_from_slice(&16_u32.to_be_bytes());
    request.extend_from_slice(&session.password);
    request.push(0);
    request
}

/// Whether `length` can be that of a connect response: 36 bytes, and one for the read-only flag of newer servers. The
/// first bytes of an HTTP or TLS response, read as a length, are a much larger number.
pub(super) fn is_connect_response_length(length: u32) -> bool {
    (36..=40).contains(&length)
}

/// Parses a connect response without its length; `None` if it is none.
pub(super) fn parse_connect_response(response: &[u8]) -> Option<Connected> {
    let mut fields = Fields(response);
    let (version, timeout_ms, id) = (fields.int()?, fields.int()?, fields.long()?);
    let password = fields.buffer()?.try_into().ok()?;
    let granted = u64::try_from(timeout_ms).ok()?;
    match (version, granted) {
        (0, 0) => Some(Connected::Expired),
        (0, granted) => Some(Connected::Session(SessionKey { id, password }, Duration::from_millis(granted))),
        _ => None,
    }
}

/// Splits a response frame, without its length, into head and body; `None` if it is too short.
pub(super) fn parse_response(frame: &[u8]) -> Option<(ResponseHead, &[u8])> {
    let mut fields = Fields(frame);
    let head = ResponseHead { xid: fields.int()?, zxid: fields.long()?, error: fields.int()? };
    Some((head, fields.0))
}

/// Parses the response to `get_data`.
pub(super) fn parse_node(body: &[u8]) -> Option<Node> {
    Fields(body).node()
}

/// Parses the response to a multi-read: each node, or the error code of its read.
pub(super) fn parse_multi_read(body: &[u8]) -> Option<Vec<Result<Node, i32>>> {
    let mut fields = Fields(body);
    let mut nodes = Vec::new();
    loop {
        let (operation, is_end, _) = (fields.int()?, fields.byte()? != 0, fields.int()?);
        match operation {
            _ if is_end => return Some(nodes),
            GET_DATA => nodes.push(Ok(fields.node()?)),
            MULTI_ERROR => nodes.push(Err(fields.int()?)),
            _ => return None,
        }
    }
}

/// Parses the response to `get_children`.
pub(super) fn parse_children(body: &[u8]) -> Option<Vec<String>> {
    let mut fields = Fields(body);
    let count = fields.int()?;
    (0..count).map(|_| Some(String::from_utf8_lossy(fields.buffer()?).into_owned())).collect()
}

/// Parses the response to a write, and returns the new version.
pub(super) fn parse_version(body: &[u8]) -> Option<i32> {
    Fields(body).stat().map(|stat| stat.version)
}

/// Parses the response to a multi: the new version of each node that is written (0 for other changes), or the error
/// code of each change.
pub(super) fn parse_multi(body: &[u8]) -> Option<Result<Vec<i32>, Vec<i32>>> {
    let mut fields = Fields(body);
    let (mut versions, mut errors) = (Vec::new(), Vec::new());
    loop {
        let (operation, is_end, _) = (fields.int()?, fields.byte()? != 0, fields.int()?);
        match operation {
            _ if is_end => break,
            CREATE => drop(fields.buffer()?),
            SET_DATA => {
                versions.push(fields.stat()?.version);
                continue;
            }
            DELETE | CHECK => {}
            MULTI_ERROR => {
                errors.push(fields.int()?);
                continue;
            }
            _ => return None,
        }
        versions.push(0);
    }
    Some(if errors.is_empty() { Ok(versions) } else { Err(errors) })
}

/// Whether the response to a multi says that a change failed.
pub(super) fn is_failed_multi(body: &[u8]) -> bool {
    // All results of a failed multi are errors, and the first field of the body is the type of the first result.
    Fields(body).int() == Some(MULTI_ERROR)
}

/// The fields of a response that are not read yet. Each function returns `None` if the field is incomplete.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn int(&mut self) -> Option<i32> {
        self.take(4)?.try_into().ok().map(i32::from_be_bytes)
    }

    fn long(&mut self) -> Option<i64> {
        self.take(8)?.try_into().ok().map(i64::from_be_bytes)
    }

    /// A length of -1 means an absent buffer, which counts as empty.
    fn buffer(&mut self) -> Option<&'a [u8]> {
        let length = self.int()?.max(0);
        self.take(usize::try_from(length).ok()?)
    }

    fn node(&mut self) -> Option<Node> {
        let data = self.buffer()?.to_vec();
        let Stat { version, ephemeral_owner, created_ms, modified_ms, children_changed, child_count } = self.stat()?;
        Some(Node { data, version, ephemeral_owner, created_ms, modified_ms, children_changed, child_count })
    }

    fn stat(&mut self) -> Option<Stat> {
        // czxid and mzxid; then, after the version, cversion and aversion.
        self.take(16)?;
        let created_ms = self.long()?;
        let modified_ms = self.long()?;
        let version = self.int()?;
        self.take(8)?;
        let ephemeral_owner = self.long()?;
        // dataLength.
        self.take(4)?;
        let (child_count, children_changed) = (self.int()?.max(0).unsigned_abs(), self.long()?);
        Some(Stat { version, ephemeral_owner, created_ms, modified_ms, children_changed, child_count })
    }
}

/// The fields of a node's Stat that are used.
struct Stat {
    version: i32,
    ephemeral_owner: i64,
    created_ms: i64,
    modified_ms: i64,
    children_changed: i64,
    child_count: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(version: i32, owner: i64) -> Vec<u8> {
        let mut stat = vec![0; 16];
        stat.extend_from_slice(&1_600_000_000_000_i64.to_be_bytes());
        stat.extend_from_slice(&1_700_000_000_000_i64.to_be_bytes());
        stat.extend_from_slice(&version.to_be_bytes());
        stat.extend_from_slice(&[0; 8]);
        stat.extend_from_slice(&owner.to_be_bytes());
        stat.extend_from_slice(&[0; 4]);
        stat.extend_from_slice(&3_i32.to_be_bytes());
        stat.extend_from_slice(&77_i64.to_be_bytes());
        stat
    }

    #[test]
    fn a_connect_request_and_its_response_have_the_format_of_the_protocol() {
        let session = SessionKey { id: 7, password: [3; 16] };
        let request = connect_request(Duration::from_secs(6), session, 9);
        assert_eq!(request.len(), 49);
        assert_eq!(request[8..16], 9_i64.to_be_bytes());
        assert_eq!(request[16..20], 6_000_i32.to_be_bytes());
        assert_eq!(request[20..28], 7_i64.to_be_bytes());
        assert_eq!(request[32..48], [3; 16]);
        let mut response = [0_u8; 37];
        response[4..8].copy_from_slice(&4_000_i32.to_be_bytes());
        response[15] = 7;
        response[19] = 16;
        response[20..36].fill(3);
        assert_eq!(parse_connect_response(&response), Some(Connected::Session(session, Duration::from_secs(4))));
        assert_eq!(parse_connect_response(&response[..35]), None);
        for (index, wrong) in [(3, 1), (4, 0xff), (19, 15)] {
            let mut response = response;
            response[index] = wrong;
            assert_eq!(parse_connect_response(&response), None, "byte {index}");
        }
        response[4..8].fill(0);
        assert_eq!(parse_connect_response(&response), Some(Connected::Expired));
    }

    #[test]
    fn a_request_is_a_frame_with_its_xid() {
        let frame = Request::get_data("/ab").frame(5);
        let expected = [0, 0, 0, 16, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 3, b'/', b'a', b'b', 0];
        assert_eq!(frame, expected);
        let read = Request::multi_read(["/ab"]).frame(5);
        assert_eq!(read[8..12], 22_i32.to_be_bytes());
        assert_eq!(read[12..21], [0, 0, 0, 4, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(read[21..read.len() - 9], expected[12..]);
        assert_eq!(read[read.len() - 9..], [0xff, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff, 0xff]);
        let write = Change::Write("/a".into(), b"x".to_vec(), Some(3));
        let frame = Request::multi(std::slice::from_ref(&write)).frame(1);
        let single = Request::change(&write).frame(1);
        assert_eq!(frame[12..21], [0, 0, 0, 5, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(frame[21..frame.len() - 9], single[12..]);
        assert_eq!(frame[frame.len() - 9..], [0xff, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn responses_are_parsed_and_a_response_that_is_cut_is_refused() {
        let mut node = vec![0, 0, 0, 1, b'x'];
        node.extend(stat(4, 9));
        let (data, created_ms, modified_ms) = (b"x".to_vec(), 1_600_000_000_000, 1_700_000_000_000);
        let (version, ephemeral_owner, children_changed, child_count) = (4, 9, 77, 3);
        let expected = Node { data, version, ephemeral_owner, created_ms, modified_ms, children_changed, child_count };
        assert_eq!(parse_node(&node), Some(expected.clone()));
        assert!((0..node.len()).all(|length| parse_node(&node[..length]).is_none()));
        let children = [0, 0, 0, 2, 0, 0, 0, 1, b'a', 0, 0, 0, 1, b'b'];
        assert_eq!(parse_children(&children), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(parse_children(&children[..13]), None);
        assert_eq!(parse_children(&i32::MAX.to_be_bytes()), None);
        assert_eq!(parse_version(&stat(7, 0)), Some(7));
        let result = |operation: i32, body: &[u8]| [&operation.to_be_bytes()[..], &[0; 5], body].concat();
        let end = [&(-1_i32).to_be_bytes()[..], &[1], &[0xff; 4]].concat();
        let nodes = [result(GET_DATA, &node), result(-1, &error::NO_NODE.to_be_bytes()), end].concat();
        assert_eq!(parse_multi_read(&nodes), Some(vec![Ok(expected), Err(error::NO_NODE)]));
        assert!((0..nodes.len()).all(|length| parse_multi_read(&nodes[..length]).is_none()));
        assert_eq!(parse_multi_read(&result(MULTI, &node)), None);

        let header =
            |operation: i32, is_end: bool| [&operation.to_be_bytes()[..], &[u8::from(is_end)], &[0; 4]].concat();
        let end = header(-1, true);
        let done = [header(CHECK, false), header(SET_DATA, false), stat(8, 0), end.clone()].concat();
        assert_eq!(parse_multi(&done), Some(Ok(vec![0, 8])));
        assert!(!is_failed_multi(&done));
        let error = |code: i32| [header(-1, false), code.to_be_bytes().to_vec()].concat();
        let failed = [error(error::OK), error(error::BAD_VERSION), end].concat();
        assert_eq!(parse_multi(&failed), Some(Err(vec![0, error::BAD_VERSION])));
        assert!(is_failed_multi(&failed));
        assert_eq!(parse_multi(&failed[..20]), None);
    }
}
