//! After 101: what lived as long as the answer's body lives as long as the tunnel.

use std::future::poll_fn;

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{Request, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::connection::writer::{Patient, Writer};
use super::shutdown::Shutdown;
use crate::body::End;
use crate::context::{RequestContext, Response};
use crate::error::Reason;
use crate::snapshot::Leaf;
use crate::stream::tunnel;
use crate::tasks::Group;

/// The client's side of a tunnel to come.
#[derive(Debug)]
pub(super) enum Client {
    /// The connection itself, over HTTP/1.1.
    Connection(OnUpgrade),
    /// One stream of a connection, over HTTP/2.
    Stream(OnUpgrade, Writer),
}

impl Client {
    /// What may become of this request's connection or stream; none when it does not ask for anything.
    pub(super) fn of<B>(request: &mut Request<B>) -> Option<Self> {
        if let Some(writer) = request.extensions_mut().remove::<Writer>() {
            return Some(Self::Stream(hyper::upgrade::on(request), writer));
        }
        request.headers().contains_key(UPGRADE).then(|| Self::Connection(hyper::upgrade::on(request)))
    }

    /// Turns the upstream's 101 into what this client takes for it.
    pub(super) fn answer(&self, context: &RequestContext, response: &mut Response) {
        match self {
            Self::Connection(_) => context.connection().become_tunnel(),
            Self::Stream(..) => {
                *response.status_mut() = StatusCode::OK;
                for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT] {
                    response.headers_mut().remove(name);
                }
            }
        }
    }
}

/// Starts the tunnel of an answer of 101.
pub(super) fn start(
    client: Option<Client>,
    context: RequestContext,
    response: &mut Response,
    leaf: &Leaf,
    shutdown: Shutdown,
    tasks: &Group,
) {
    let upstream = hyper::upgrade::on(&mut *response);
    let mut body = std::mem::take(response.body_mut());
    let held = std::mem::take(response.extensions_mut());
    let Some(client) = client else { return body.finish(End::Failed(Reason::UpgradeFailed)) };
    client.answer(&context, response);
    let idle = leaf.idle;
    let stall = leaf.stall_timeout;
    tasks.spawn(async move {
        let carried = async {
            let (client, writer) = match client {
                Client::Connection(client) => (client, None),
                Client::Stream(client, writer) => (client, Some(writer)),
            };
            let client = async { client.await.map_err(|_| Reason::ClientGone) };
            let upstream = async { upstream.await.map_err(|_| Reason::UpgradeFailed) };
            let (client, upstream) = match tokio::try_join!(client, upstream) {
                Ok((client, upstream)) => (TokioIo::new(client), TokioIo::new(upstream)),
                Err(reason) => return End::Failed(reason),
            };
            let cut = async {
                tokio::select! {
                    () = shutdown.cut.cancelled() => Reason::Drained,
                    () = poll_fn(|cx| context.poll_cut(cx)) => context.cancelled().unwrap_or(Reason::Cancelled),
                }
            };
            let heard = |bytes: &[u8]| context.notes().receive(bytes.len());
            let passed = |bytes: &[u8]| body.tell(bytes);
            let Some(writer) = writer else {
                return tokio::select! {
                    biased;
                    reason = cut => End::Failed(reason),
                    end = tunnel::carry(client, upstream, idle, heard, passed) => end,
                };
            };
            let mut client = Patient::new(client, writer.clone(), stall);
            let end = tokio::select! {
                biased;
                reason = cut => End::Failed(reason),
                () = writer.lost() => End::Failed(context.connection().cut().unwrap_or(Reason::ClientGone)),
                end = tunnel::carry(&mut client, upstream, idle, heard, passed) => end,
            };
            // The writer first: one that merely loses its tunnel would end the stream as if all had been said.
            writer.cut().await;
            drop(client);
            end
        };
        let end = carried.await;
        body.finish(end);
        drop(held);
    });
}
