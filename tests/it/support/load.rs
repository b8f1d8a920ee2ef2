//! Clients that come at a rate of their own, whatever becomes of those before them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http::StatusCode;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Proxy, empty, h2, request};

/// Sends `rate` requests a second for as long as it is polled, and counts those that are served.
pub(crate) async fn load(proxy: &Proxy, rate: f64, served: Arc<AtomicUsize>) {
    let mut clients = JoinSet::new();
    let sender = h2(proxy.public(), 1 << 16).await;
    let addr = proxy.public();
    let began = Instant::now();
    let mut sent = 0_usize;
    loop {
        // A machine that is late catches up: the load is what was asked for.
        while (sent as f64) < began.elapsed().as_secs_f64() * rate {
            sent += 1;
            let (mut sender, served) = (sender.clone(), Arc::clone(&served));
            clients.spawn(async move {
                let answer = sender.send_request(request("GET", addr, "/", empty())).await;
                if answer.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                    served.fetch_add(1, SeqCst);
                }
            });
        }
        while clients.try_join_next().is_some() {}
        sleep(Duration::from_millis(2)).await;
    }
}
