//! The official Python SDK of `OpenAI` streams a chat, and may stop at any time.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use tokio::time::{Instant, sleep};

use crate::support::{Origin, Proxy, eventually, python};

/// Ends the interpreter with the test.
struct Script(Child);

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An upstream that answers as one compatible to `OpenAI`'s does: so many tokens, one every `pace`.
fn model(tokens: usize, pace: Duration) -> Origin {
    Origin::scripted(move |request, scene| async move {
        assert_eq!(request.uri().path(), "/v1/chat/completions");
        let frames = stream::unfold(0, move |at| async move {
            if at > tokens + 1 {
                return None;
            }
            sleep(if at == 0 { Duration::ZERO } else { pace }).await;
            Some((Ok(Frame::data(chunk(at, tokens))), at + 1))
        });
        scene.stream("text/event-stream; charset=utf-8", frames)
    })
}

fn chunk(at: usize, tokens: usize) -> Bytes {
    if at == tokens + 1 {
        return Bytes::from("data: [DONE]\n\n");
    }
    let mut chunk = serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "test", "choices": [],
    });
    if at == tokens {
        chunk["usage"] =
            serde_json::json!({ "prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1 });
    } else {
        let delta = serde_json::json!({ "role": "assistant", "content": format!("t{at}") });
        chunk["choices"] = serde_json::json!([{ "index": 0, "delta": delta, "finish_reason": null }]);
    }
    Bytes::from(format!("data: {chunk}\n\n"))
}

fn proxy(origin: &Origin, more: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[upstream.llm]\nendpoints = [\"{}\"]\n{more}\n[[route]]\nmatch = {{ path = \"/v1/*\" }}\nupstream = \"llm\"\n",
        origin.url()
    ))
}

#[test]
fn a_chat_streams_to_its_end() {
    let origin = model(25, Duration::from_millis(10));
    let proxy = proxy(&origin, "");
    let output = python("chat.py").arg(proxy.url("/v1")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let mut wanted = (0..25).map(|at| format!("token t{at}")).collect::<Vec<_>>();
    wanted.extend(["usage 26".to_owned(), "done".to_owned()]);
    assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
    assert_eq!(origin.cancelled(), 0);
}

#[tokio::test]
async fn a_cancelled_chat_frees_the_model_at_once() {
    let origin = model(100_000, Duration::from_millis(20));
    let proxy = proxy(&origin, "");
    let mut command = python("chat.py");
    command.arg(proxy.url("/v1")).arg("5").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut script = Script(command.spawn().unwrap());
    let mut lines = BufReader::new(script.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "closed"), "the SDK never closed its stream");
    let closed = Instant::now();
    assert!(eventually(|| origin.cancelled() == 1, Duration::from_secs(1)).await, "the model goes on talking");
    let took = closed.elapsed();
    println!("the upstream saw the cancel {took:?} after the SDK had closed its stream");
    assert!(took < Duration::from_millis(100), "{took:?}");
    assert_eq!(origin.in_flight(), 0);
}

#[test]
fn a_refused_chat_is_an_error_that_the_sdk_understands() {
    let origin = model(1, Duration::ZERO);
    let more = "\n[[route]]\nmatch = { path = \"/limited/*\" }\nupstream = \"llm\"\nstrip_prefix = \"/limited\"\n\
                rate_limit = [{ name = \"all\", by = \"all\", rate = \"1/min\", burst = 1 }]\n";
    let proxy = proxy(&origin, more);
    let ask = || python("chat.py").arg(proxy.url("/limited/v1")).output().unwrap();
    let first = ask();
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let second = ask();
    assert_eq!(second.status.code(), Some(3), "{}", String::from_utf8_lossy(&second.stderr));
    let text = String::from_utf8_lossy(&second.stdout).into_owned();
    assert!(text.starts_with("status 429 retry-after ") && !text.contains("None"), "{text}");
}
