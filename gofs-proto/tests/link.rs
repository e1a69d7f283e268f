//! Links between two ends on loopback.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use gofs_proto::door::{Door, which};
use gofs_proto::frame::{Frame, PREFACE, encode_head};
use gofs_proto::kind::{FAILURE, REPLY, Request};
use gofs_proto::session::{self, Failure, Lookup, LookupReply, Recall, RecallReply, failure::Code};
use gofs_proto::{CallError, Link, LinkHandler, Replies};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

/// What a link told its handler.
#[derive(Debug)]
enum Event {
    Request(Frame),
    Close,
}

/// Hands everything on to the test.
struct Recorder(UnboundedSender<Event>);

impl LinkHandler for Recorder {
    fn on_request(&self, _: &Arc<Link>, request: Frame) {
        self.0.send(Event::Request(request)).ok();
    }
    fn on_close(&self, _: &Arc<Link>) {
        self.0.send(Event::Close).ok();
    }
}

fn recorder() -> (Arc<Recorder>, UnboundedReceiver<Event>) {
    let (sender, events) = unbounded_channel();
    (Arc::new(Recorder(sender)), events)
}

async fn next(events: &mut UnboundedReceiver<Event>) -> Event {
    timeout(SOON, events.recv()).await.expect("an event comes").expect("the link lives")
}

async fn next_request(events: &mut UnboundedReceiver<Event>) -> Frame {
    match next(events).await {
        Event::Request(frame) => frame,
        Event::Close => panic!("closed instead of a request"),
    }
}

async fn until_closed(events: &mut UnboundedReceiver<Event>) {
    while !matches!(next(events).await, Event::Close) {}
}

struct End {
    link: Arc<Link>,
    events: UnboundedReceiver<Event>,
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn pair() -> (End, End) {
    let (handler, events) = recorder();
    let (link, server) = pair_with(handler).await;
    (End { link, events }, server)
}

/// A client whose requests go to `handler`, and its server.
async fn pair_with(handler: Arc<dyn LinkHandler>) -> (Arc<Link>, End) {
    let (listener, address) = listen().await;
    let client = Link::connect(address, handler, SOON).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    assert_eq!(which(&stream).await.unwrap(), Door::Frame);
    let (handler, events) = recorder();
    let link = Link::accept(stream, handler).unwrap();
    (client, End { link, events })
}

fn lookup(parent: u64) -> Lookup {
    Lookup { parent, name: "name".into() }
}

/// The answer to `request`, which tells which request it was.
fn answer(link: &Link, request: &Frame) {
    let asked = Lookup::decode(request.header.clone()).unwrap();
    let node = session::Node {
        attr: Some(session::Attr { ino: asked.parent, ..session::Attr::default() }),
        ..session::Node::default()
    };
    link.reply::<Lookup>(
        request.id,
        &LookupReply { node: Some(node), dir: None },
        vec![request.payload.clone()],
    );
}

fn answered(reply: &LookupReply) -> u64 {
    reply.node.as_ref().unwrap().attr.as_ref().unwrap().ino
}

#[tokio::test]
async fn calls_go_both_ways_with_their_payloads() {
    let (client, mut server) = pair().await;
    let call = client.link.call(&lookup(5), vec![Bytes::from_static(b"pay"), Bytes::from_static(b"load")]);
    let request = next_request(&mut server.events).await;
    assert_eq!((request.kind, &request.payload[..]), (Lookup::KIND, &b"payload"[..]));
    answer(&server.link, &request);
    let (reply, payload) = timeout(SOON, call).await.unwrap().unwrap();
    assert_eq!((answered(&reply), &payload[..]), (5, &b"payload"[..]));

    let mut client = client;
    let call = server.link.call(&Recall { ino: 3, ..Recall::default() }, vec![]);
    let request = next_request(&mut client.events).await;
    assert_eq!(Recall::decode(request.header).unwrap().ino, 3);
    client.link.reply::<Recall>(request.id, &RecallReply { open: true }, vec![]);
    assert!(timeout(SOON, call).await.unwrap().unwrap().0.open);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_in_flight_each_get_their_own_answer() {
    const CALLS: u64 = 2000;
    let (client, mut server) = pair().await;
    let calls: Vec<JoinHandle<_>> = (0..CALLS)
        .map(|at| {
            let link = client.link.clone();
            let payload = Bytes::from(vec![at as u8; 3000]);
            tokio::spawn(async move { (at, link.call(&lookup(at), vec![payload]).await) })
        })
        .collect();
    let mut requests = Vec::new();
    for _ in 0..CALLS {
        requests.push(next_request(&mut server.events).await);
    }
    for request in requests.iter().rev() {
        answer(&server.link, request);
    }
    for call in calls {
        let (at, result) = timeout(SOON, call).await.unwrap().unwrap();
        let (reply, payload) = result.unwrap();
        assert_eq!(answered(&reply), at);
        assert_eq!(&payload[..], vec![at as u8; 3000]);
    }
}

#[tokio::test]
async fn a_refusal_reaches_the_caller() {
    let (client, mut server) = pair().await;
    let call = client.link.call(&lookup(1), vec![]);
    let request = next_request(&mut server.events).await;
    server.link.refuse(request.id, &Failure::new(Code::Retry, "later"));
    match timeout(SOON, call).await.unwrap() {
        Err(CallError::Refused(failure)) => {
            assert_eq!((failure.code(), &failure.text[..]), (Code::Retry, "later"))
        }
        other => panic!("{other:?}"),
    }
}

/// Writes down in which order things came.
struct Order(UnboundedSender<&'static str>);

impl LinkHandler for Order {
    fn on_request(&self, _: &Arc<Link>, _: Frame) {
        self.0.send("request").unwrap();
    }
    fn on_close(&self, _: &Arc<Link>) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_is_seen_before_the_request_that_follows_it() {
    let (order, mut seen) = unbounded_channel();
    let (client, mut server) = pair_with(Arc::new(Order(order.clone()))).await;
    for _ in 0..200 {
        let then = order.clone();
        let call = client.call_then(&lookup(1), vec![], move |_, _| then.send("reply").unwrap());
        let request = next_request(&mut server.events).await;
        answer(&server.link, &request);
        drop(server.link.call(&Recall::default(), vec![]));
        timeout(SOON, call).await.unwrap().unwrap();
        assert_eq!(timeout(SOON, seen.recv()).await.unwrap(), Some("reply"));
        assert_eq!(timeout(SOON, seen.recv()).await.unwrap(), Some("request"));
    }
}

#[tokio::test]
async fn closing_fails_the_calls_of_both_ends_once() {
    for closer in ["caller", "other"] {
        let (mut client, mut server) = pair().await;
        let calls: Vec<_> = (0..10).map(|at| client.link.call(&lookup(at), vec![])).collect();
        for _ in 0..10 {
            next_request(&mut server.events).await;
        }
        if closer == "caller" {
            client.link.close()
        } else {
            server.link.close()
        }
        for call in calls {
            assert!(matches!(timeout(SOON, call).await.unwrap(), Err(CallError::Closed(_))), "{closer}");
        }
        until_closed(&mut client.events).await;
        until_closed(&mut server.events).await;
        assert!(client.link.is_closed() && server.link.is_closed());
        let late = client.link.call(&lookup(1), vec![]);
        assert!(matches!(timeout(SOON, late).await.unwrap(), Err(CallError::Closed(_))));
        client.link.close();
        assert!(client.events.try_recv().is_err(), "on_close comes once");
    }
}

/// Collects what is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start() -> (Log, tracing::subscriber::DefaultGuard) {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// A server's end, and the bare stream at the other.
async fn raw_client() -> (TcpStream, End) {
    let (listener, address) = listen().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&PREFACE).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let (handler, events) = recorder();
    (stream, End { link: Link::accept(accepted, handler).unwrap(), events })
}

#[tokio::test]
async fn garbage_closes_the_connection_and_says_so() {
    let (log, _guard) = Log::start();
    let (mut stream, mut server) = raw_client().await;
    let call = server.link.call(&Recall::default(), vec![]);
    stream.write_all(&[0x5a; 64]).await.unwrap();
    until_closed(&mut server.events).await;
    assert!(matches!(timeout(SOON, call).await.unwrap(), Err(CallError::Closed(_))));
    let text = log.text();
    assert!(text.contains("not a frame") && text.contains("127.0.0.1"), "{text}");
}

#[tokio::test]
async fn a_damaged_frame_closes_and_an_honest_end_is_not_logged() {
    let (log, _guard) = Log::start();
    let (mut stream, mut server) = raw_client().await;
    stream.write_all(&encode_head(Lookup::KIND, 1, &lookup(1), 0)).await.unwrap();
    next_request(&mut server.events).await;
    drop(stream);
    until_closed(&mut server.events).await;
    assert_eq!(log.text(), "");

    let (mut stream, mut server) = raw_client().await;
    let mut bytes = encode_head(Lookup::KIND, 1, &lookup(1), 0).to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    stream.write_all(&bytes).await.unwrap();
    until_closed(&mut server.events).await;
    assert!(log.text().contains("checksum"), "{}", log.text());
}

#[tokio::test]
async fn a_reply_that_cannot_be_read_fails_that_call_only() {
    let (mut stream, server) = raw_client().await;
    let bad = server.link.call(&Recall { ino: 1, ..Recall::default() }, vec![]);
    let good = server.link.call(&Recall { ino: 2, ..Recall::default() }, vec![]);
    // Attr as a RecallReply: field 1 of another wire type.
    let wrong = Failure { code: 1, text: "x".into(), leader: "y".into(), fs_error: 2 };
    let mut bytes = BytesMut::new();
    bytes.put(encode_head(
        Recall::KIND | REPLY,
        1,
        &session::DirItem { name: "n".into(), ..Default::default() },
        0,
    ));
    bytes.put(encode_head(Recall::KIND | REPLY, 2, &RecallReply { open: true }, 0));
    // Nobody waits for this one.
    bytes.put(encode_head(FAILURE, 77, &wrong, 0));
    stream.write_all(&bytes).await.unwrap();
    assert!(matches!(timeout(SOON, bad).await.unwrap(), Err(CallError::Garbled(_))));
    assert!(timeout(SOON, good).await.unwrap().unwrap().0.open);
    assert!(!server.link.is_closed());
}

#[tokio::test]
async fn a_peer_that_does_not_read_makes_its_callers_wait() {
    let (mut stream, server) = raw_client().await;
    let payload = Bytes::from(vec![7; 1 << 20]);
    let mut calls = Vec::new();
    timeout(SOON, server.link.ready()).await.expect("nothing is unsent");
    let mut sent = 0;
    while timeout(Duration::from_millis(20), server.link.ready()).await.is_ok() {
        calls.push(server.link.call(&Recall::default(), vec![payload.clone()]));
        sent += 1;
        assert!(sent < 200, "200 MiB went to a peer that reads nothing");
    }
    let reader = tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 20];
        let mut read = 0;
        while read < sent << 20 {
            read += stream.read(&mut buffer).await.unwrap();
        }
        stream
    });
    timeout(SOON, server.link.ready()).await.expect("the peer reads again");
    let stream = timeout(SOON, reader).await.unwrap().unwrap();
    drop(stream);
    for call in calls {
        assert!(matches!(timeout(SOON, call).await.unwrap(), Err(CallError::Closed(_))));
    }
    timeout(SOON, server.link.ready()).await.expect("a closed link keeps nobody waiting");
}

#[tokio::test]
async fn the_door_tells_frames_from_http2_and_drops_the_rest() {
    let (listener, address) = listen().await;
    for (bytes, door) in [
        (&b"gofsfr1\n"[..], Some(Door::Frame)),
        (b"PRI * HTTP/2.0\r\n\r\n", Some(Door::Rpc)),
        (b"GET / HTTP/1.1\r\n", None),
        (b"gofsfr2\n", None),
        (b"gofs", None),
        (b"", None),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let seen = timeout(SOON, which(&accepted)).await.expect("no waiting after the end");
        assert_eq!(seen.ok(), door, "{}", bytes.escape_ascii());
    }
}

/// Gathers requests and answers them when no more have come.
#[derive(Default)]
struct Gatherer {
    gathered: Mutex<Vec<Frame>>,
    rounds: Mutex<Vec<usize>>,
}

impl LinkHandler for Gatherer {
    fn on_request(&self, _: &Arc<Link>, request: Frame) {
        self.gathered.lock().unwrap().push(request);
    }

    fn on_pause(&self, link: &Arc<Link>) {
        let gathered = std::mem::take(&mut *self.gathered.lock().unwrap());
        if gathered.is_empty() {
            return;
        }
        self.rounds.lock().unwrap().push(gathered.len());
        let mut replies = Replies::default();
        for request in gathered {
            match Lookup::decode(request.header.clone()).unwrap().parent {
                0 => replies.refuse(request.id, &Failure { text: "none".into(), ..Failure::default() }),
                parent => {
                    let attr = Some(session::Attr { ino: parent, ..session::Attr::default() });
                    let node = Some(session::Node { attr, ..session::Node::default() });
                    replies.reply::<Lookup>(request.id, &LookupReply { node, dir: None }, request.payload);
                }
            }
        }
        link.reply_all(replies);
    }

    fn on_close(&self, _: &Arc<Link>) {}
}

#[tokio::test]
async fn requests_that_come_together_can_be_answered_together() {
    let gatherer = Arc::new(Gatherer::default());
    let (listener, address) = listen().await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let mut sent = BytesMut::from(&PREFACE[..]);
    for id in 0..3u64 {
        sent.extend_from_slice(&encode_head(Lookup::KIND, id, &lookup(id), 2));
        sent.extend_from_slice(b"ab");
    }
    // And half of one more.
    let fourth = encode_head(Lookup::KIND, 3, &lookup(3), 0);
    sent.extend_from_slice(&fourth[..10]);
    client.write_all(&sent).await.unwrap();
    let link = Link::accept(stream, gatherer.clone()).unwrap();

    let mut received = BytesMut::new();
    let mut kinds = Vec::new();
    while kinds.len() < 4 {
        match gofs_proto::frame::decode(&mut received).unwrap() {
            Ok(frame) => {
                assert_eq!(frame.id, kinds.len() as u64);
                kinds.push(frame.kind);
                if kinds.len() == 3 {
                    client.write_all(&fourth[10..]).await.unwrap();
                }
            }
            Err(_) => assert!(timeout(SOON, client.read_buf(&mut received)).await.unwrap().unwrap() > 0),
        }
    }
    assert_eq!(kinds, [FAILURE, Lookup::KIND | REPLY, Lookup::KIND | REPLY, Lookup::KIND | REPLY]);
    assert_eq!(*gatherer.rounds.lock().unwrap(), [3, 1]);
    link.close();
}
