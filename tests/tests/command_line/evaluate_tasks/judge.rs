//! A judge over HTTP that likes everything alike.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::json;

/// What it says of every answer.
pub(super) const RATING: f64 = 7.0;

/// Starts a judge: where it is, and how often it was asked so far.
pub(super) fn judge() -> (String, impl Fn() -> usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            answer(stream.unwrap());
        }
    });
    (endpoint, move || asked.load(Ordering::SeqCst))
}

fn answer(mut stream: TcpStream) {
    let mut reader = BufReader::new(&stream);
    let (mut line, mut length) = (String::new(), 0);
    while line != "\r\n" {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "half a question");
        let (name, value) = line.split_once(": ").unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap();
        }
    }
    reader.read_exact(&mut vec![0; length]).unwrap();
    let message = json!({"role": "assistant", "content": format!("Rating: [[{RATING}]]")});
    let usage = json!({"prompt_tokens": 100, "completion_tokens": 4});
    let body = json!({"choices": [{"message": message}], "usage": usage}).to_string();
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: ";
    stream
        .write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes())
        .unwrap();
}
