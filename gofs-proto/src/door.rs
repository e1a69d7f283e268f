//! One port, two doors: looks at the first bytes of a connection without taking them.

use std::io;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::frame::PREFACE;

/// How long a fresh connection may take to say what it speaks.
const KNOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// What an HTTP/2 client, and so tonic, sends first.
const HTTP2_PREFACE: [u8; 8] = *b"PRI * HT";

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Frames; the preface is still to be read.
    Frame,
    /// HTTP/2, for tonic.
    Rpc,
}

/// Tells which door a new connection wants. An error (garbage, silence, end) means: drop it.
pub async fn which(stream: &TcpStream) -> io::Result<Door> {
    let mut first = [0; 8];
    let look = async {
        loop {
            let seen = stream.peek(&mut first).await?;
            if seen == first.len() {
                return io::Result::Ok(());
            }
            let fits = first[..seen] == PREFACE[..seen] || first[..seen] == HTTP2_PREFACE[..seen];
            if seen == 0 || !fits {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if stream.ready(Interest::READABLE).await?.is_read_closed() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // Peek is ready at once while a partial preface lies there.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(KNOCK_TIMEOUT, look).await.map_err(|_| io::ErrorKind::TimedOut)??;
    match first {
        PREFACE => Ok(Door::Frame),
        HTTP2_PREFACE => Ok(Door::Rpc),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "neither gofs frames nor HTTP/2")),
    }
}
