//! Requests as any client sends them.
#![expect(clippy::unwrap_used, reason = "a test that cannot begin fails")]

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Sends a request; its answer is yet to be read.
pub(crate) fn send(socket: &Path, request: &str, body: &str) -> BufReader<UnixStream> {
    let mut stream = UnixStream::connect(socket).unwrap();
    let length = body.len();
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    BufReader::new(stream)
}

/// The whole answer to a request.
pub(crate) fn answer(socket: &Path, request: &str, body: &str) -> String {
    let mut text = String::new();
    send(socket, request, body)
        .read_to_string(&mut text)
        .unwrap();
    text
}
