//! A server that answers exactly what a test tells it to.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

/// The heads of the requests that came, in order.
pub(crate) type Heads = Arc<Mutex<Vec<String>>>;

pub(crate) struct Fake {
    pub(crate) base: String,
    pub(crate) heads: Heads,
    server: JoinHandle<()>,
}

impl Fake {
    /// Answers each request with what `answer` makes of its head (lower case), then closes the
    /// connection: an answer that is shorter than it says is a broken one. A body is read and
    /// forgotten.
    pub(crate) async fn start(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let heads = Heads::default();
        let (seen, answer) = (heads.clone(), Arc::new(answer));
        let server = tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (seen, answer) = (seen.clone(), answer.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    let mut part = [0u8; 4096];
                    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                        match socket.read(&mut part).await {
                            Ok(0) | Err(_) => return,
                            Ok(n) => head.extend_from_slice(&part[..n]),
                        }
                    }
                    let end = head.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(0) + 4;
                    let mut body = head.split_off(end).len();
                    let head = String::from_utf8_lossy(&head).to_lowercase();
                    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
                    let len = lines.find_map(|(name, value)| {
                        (name == "content-length").then(|| value.trim().parse::<usize>().ok())?
                    });
                    // A body that is not read would take the answer along.
                    while body < len.unwrap_or(0) {
                        match socket.read(&mut part).await {
                            Ok(0) | Err(_) => return,
                            Ok(n) => body += n,
                        }
                    }
                    let bytes = answer(&head);
                    seen.lock().expect("heads").push(head);
                    let _ = socket.write_all(&bytes).await;
                    let _ = socket.shutdown().await;
                });
            }
        });
        Fake { base, heads, server }
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.heads.lock().expect("heads").clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// An answer with these header lines.
pub(crate) fn answer(status: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    if !headers.iter().any(|header| header.to_lowercase().starts_with("content-length")) {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    [text.as_bytes(), body].concat()
}
