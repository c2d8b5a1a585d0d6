//! Access rules, made by the request of Kafka's own protocol: the client library has none for it, and the
//! command line tool is not among the broker's artifacts.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

pub(crate) const TOPIC: u8 = 2;
pub(crate) const GROUP: u8 = 3;
pub(crate) const LITERAL: u8 = 3;
pub(crate) const PREFIXED: u8 = 4;
pub(crate) const READ: u8 = 3;
pub(crate) const WRITE: u8 = 4;
pub(crate) const CREATE: u8 = 5;
pub(crate) const DELETE: u8 = 6;
pub(crate) const DESCRIBE: u8 = 8;
pub(crate) const DESCRIBE_CONFIGS: u8 = 10;

/// What somebody may do, or may not.
pub(crate) struct Rule {
    pub(crate) resource: u8,
    pub(crate) name: String,
    pub(crate) pattern: u8,
    pub(crate) principal: String,
    pub(crate) operation: u8,
    pub(crate) allowed: bool,
}

/// Makes rules, as whoever the listener at this address takes everybody for.
pub(crate) fn make(broker: &str, rules: &[Rule]) {
    let text = |text: &str| [&u16::try_from(text.len()).expect("short").to_be_bytes()[..], text.as_bytes()].concat();
    // CreateAcls, version 1.
    let mut request = [30_u16.to_be_bytes(), 1_u16.to_be_bytes()].concat();
    request.extend(7_u32.to_be_bytes());
    request.extend(text("test"));
    request.extend(u32::try_from(rules.len()).expect("few").to_be_bytes());
    for rule in rules {
        request.push(rule.resource);
        request.extend(text(&rule.name));
        request.push(rule.pattern);
        request.extend(text(&rule.principal));
        request.extend(text("*"));
        request.extend([rule.operation, if rule.allowed { 3 } else { 2 }]);
    }
    let mut connection = TcpStream::connect(broker).expect("a connection");
    connection.write_all(&u32::try_from(request.len()).expect("short").to_be_bytes()).expect("a request");
    connection.write_all(&request).expect("a request");
    let mut length = [0; 4];
    connection.read_exact(&mut length).expect("an answer");
    let mut answer = vec![0; usize::try_from(u32::from_be_bytes(length)).expect("short")];
    connection.read_exact(&mut answer).expect("an answer");
    // The number of the request, how long to wait, how many; then a code and no words for each.
    let results = &answer[12..];
    assert_eq!(results.len(), rules.len() * 4, "refused: {answer:?}");
    assert!(results.chunks(4).all(|result| result[..2] == [0, 0]), "refused: {answer:?}");
}
