//! A line to a server that goes wrong: connections are refused, cut before the request arrives, cut
//! after it arrived and before the answer, or answered with 503.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// How often each thing goes wrong, per piece of data that passes: one in so many.
const ONE_IN: u64 = 60;

/// A listener whose connections lead to a server, mostly.
pub(crate) struct Proxy {
    pub(crate) base: String,
    hits: Arc<AtomicU64>,
}

impl Proxy {
    /// A line to `upstream`, as in `http://127.0.0.1:42100`. What goes wrong follows from `seed`.
    pub(crate) fn to(upstream: &str, seed: u64) -> Proxy {
        let upstream = upstream.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let hits = Arc::new(AtomicU64::new(0));
        let dice = Dice { state: Arc::new(AtomicU64::new(seed | 1)), hits: hits.clone() };
        // Ends with the process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (upstream, dice) = (upstream.clone(), dice.clone());
                thread::spawn(move || carry(client, &upstream, &dice));
            }
        });
        Proxy { base, hits }
    }

    /// How often something went wrong.
    pub(crate) fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Dice {
    state: Arc<AtomicU64>,
    hits: Arc<AtomicU64>,
}

impl Dice {
    fn is_hit(&self) -> bool {
        // An odd step walks through all numbers; the multiplication spreads them.
        let at = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (at ^ (at >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33;
        let is_hit = mixed.is_multiple_of(ONE_IN);
        self.hits.fetch_add(u64::from(is_hit), Ordering::Relaxed);
        is_hit
    }
}

fn carry(mut client: TcpStream, upstream: &str, dice: &Dice) {
    if dice.is_hit() {
        return;
    }
    let Ok(server) = TcpStream::connect(upstream) else { return };
    let (Ok(from_server), Ok(to_client)) = (server.try_clone(), client.try_clone()) else { return };
    let back = {
        let dice = dice.clone();
        // What the server did, it did; whether its answer comes is another matter.
        thread::spawn(move || pump(from_server, to_client, || dice.is_hit()))
    };
    let mut buffer = vec![0; 64 << 10];
    let mut to_server = server;
    loop {
        let len = match client.read(&mut buffer) {
            Ok(len) if len > 0 => len,
            _ => break,
        };
        if dice.is_hit() {
            // Cut before it arrives, or answered in the server's place.
            if dice.is_hit() || len % 2 == 0 {
                let answer =
                    "HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = client.write_all(answer.as_bytes());
            }
            break;
        }
        if to_server.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = to_server.shutdown(Shutdown::Both);
    let _ = client.shutdown(Shutdown::Both);
    let _ = back.join();
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut is_cut: impl FnMut() -> bool) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(len) if len > 0 && !is_cut() => {
                if to.write_all(&buffer[..len]).is_err() {
                    break;
                }
            }
            _ => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
