//! The shape of the file: every table, key, type and default.

use http::{HeaderName, Method};

use super::admin::{OpenPage, Token};
use super::agent::AgentUrl;
use super::breaker::{CheckPath, Growing, Kind, Statuses};
use super::endpoint::Listed;
use super::faults::{Abort, Pace, Share};
use super::limiter::{Amount, Cost, Days, Factor, Percent, Ramp, Rate, TimeOfDay};
use super::listen::{ListenAddress, Mode, Peers};
use super::priority::PriorityOf;
use super::retry::{Retry, RouteRetry};
use super::section::section;
use super::store::{Hidden, StoreUrl};
use super::values::{
    File, Flag, Free, Located, Many, Name, Named, Number, Off, OrAuto, OrOff, Size, Tables, Time, Tried, Wait,
};
use super::web::{FieldTest, FieldValue, Fields, Level, Prefix, Switch, Target};
use super::weights::Weights;
use super::window::InFlight;
use super::{AccessLog, HostPattern, PathPattern};
use crate::context::{Key, Priority};
use crate::control::allowance::Field as TimeField;
use crate::control::choice::Policy;
use crate::control::queue::{DropPolicy, Order};
use crate::upstream::{EndpointSettings, HostPolicy, Protocol};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// A count that sizes something in memory.
pub(super) type Count = Number<1, 1_000_000>;

section! {
    /// The configuration of headworks.
    Root "the file" {
        /// The front door.
        server: Server, default = {};
        /// What is written about requests and events.
        log: Log, default = {};
        /// The port for metrics and health; absent, none is opened.
        admin: Admin, optional;
        /// What instances share; absent, each counts for itself.
        store: Store, optional;
        /// How much one stream may hold, and how long its reader may stall.
        stream: Stream, default = {};
        /// The services behind the proxy, each with its endpoints and its limits.
        upstream: Named<Upstream>, default = {};
        /// What is done with which requests; with one upstream and no route, everything goes to it.
        route: Tables<Route>, default = [];
    }

    /// The front door.
    Server "[server]" {
        /// Addresses, or `unix:` with a path, for plain HTTP/1.1 and h2c; 127.0.0.1:8080 when no listener is declared
        /// either.
        listen: Many<Located<ListenAddress>>, optional;
        /// Worker threads; "auto" is one for each core.
        threads: OrAuto<Number<1, 1024>>, default = "auto";
        /// Peers whose X-Forwarded-* and Forwarded fields are believed and passed on; "unix" is who comes over a unix
        /// socket.
        trusted_proxies: Peers, default = [];
        /// Client connections at most, over all listeners.
        max_connections: Count, default = 10000;
        /// Client connections at most of one address (IPv6: of one /64) that is not a trusted proxy; "auto" is a quarter
        /// of all, and 256 at least.
        max_connections_per_client: OrAuto<Count>, default = "auto";
        /// Requests at most on one client connection, which then ends politely; absent, any number.
        max_requests: Count, optional;
        /// Bytes that all connections and requests may hold together; "auto" is half of what the process may use.
        memory: OrAuto<Located<Size<{ 4 * MIB }, TIB>>>, default = "auto";
        /// When requests are turned away because the proxy itself has too much to do.
        overload: Overload, default = {};
        /// HTTP/2 requests that one connection may cancel at once; more come back with answers taken, and with time.
        cancel_budget: Count, default = 100;
        /// HTTP/2 streams at most on one client connection.
        max_streams: Number<1, 100_000>, default = 128;
        /// Bytes of a request head at most.
        max_header_size: Size<{ 8 * KIB }, MIB>, default = "16KiB";
        /// Fields of a request head at most.
        max_headers: Number<10, 1000>, default = 100;
        /// Bytes of a request's body at most, or "off".
        max_body_size: Off<Size<1, TIB>>, default = "off";
        /// The zone that the proxy is in: endpoints of the same zone come first.
        zone: Name, optional;
        /// The clocks of a client connection.
        timeout: ServerTimeout, default = {};
        /// At shutdown, the time for requests in flight to end.
        grace: Wait, default = "30s";
        /// The same for event streams, gRPC and tunnels, which may need more or deserve less; absent, as `grace`.
        stream_grace: Wait, optional;
        /// At shutdown, how long requests are still taken while /ready says no: until balancers have noticed.
        drain_delay: Wait, default = "0s";
        /// How often this file and those it names are looked at for another content, which is then taken up; or "off".
        watch: OrOff, default = "2s";
        /// Listeners with a name or with TLS.
        listener: Tables<Listener>, default = [];
    }

    /// The clocks of a client connection.
    ServerTimeout "`server.timeout`" {
        /// For the TLS handshake, for the first bytes, and for each request head; on HTTP/2, for the first request.
        header: Time, default = "10s";
        /// How long a connection may stay open without a request.
        idle: Time, default = "75s";
        /// How long a connection may live, give or take a tenth; it then ends politely. Or "off".
        age: OrOff, default = "1h";
    }

    /// When requests are turned away because the proxy itself has too much to do.
    Overload "`server.overload`" {
        /// When the proxy's own tasks run later than this for a second on end, requests are turned away until they do
        /// not: background first, protected never; or "off".
        delay: OrOff, default = "250ms";
        /// The share of `memory` that background requests may find reserved; of the rest, four fifths are for default
        /// requests too, and nine tenths for critical ones; or "off".
        memory: Off<Share>, default = "75%";
    }

    /// A listener with a name or with TLS.
    Listener "[[server.listener]]" {
        /// What routes, logs and metrics call it.
        name: Located<Name>, required;
        /// Where to listen: an IP address and a port, or `unix:` with a path.
        address: Located<ListenAddress>, required;
        /// The permissions of a unix socket; "0660" when absent.
        mode: Located<Mode>, optional;
        /// Whether other processes may listen on the same port; the system shares the clients out.
        reuse_port: Located<Flag>, optional;
        /// Peers that begin with a header of the PROXY protocol (v1 or v2); any other peer is closed. Absent, nobody
        /// sends one.
        proxy_protocol: Located<Peers>, optional;
        /// Client connections at most on this listener; absent, those of the server.
        max_connections: Count, optional;
        /// Certificates, chosen by SNI; the first serves clients that send no name. Absent, the listener is plain.
        tls: Many<Certificate>, default = [];
        /// Certificates of clients; absent, none is asked for.
        client_auth: ClientAuth, optional;
    }

    /// A certificate and its key.
    Certificate "`tls`" {
        /// PEM file of the chain, the server's own certificate first.
        cert: File, required;
        /// PEM file of the private key.
        key: File, required;
    }

    /// Certificates of clients.
    ClientAuth "`client_auth`" {
        /// PEM file of the authorities whose certificates are good.
        ca: File, required;
        /// PEM files of revocation lists; when there are any, each authority must have one.
        crl: Many<File>, default = [];
        /// Whether a client without a certificate is turned away.
        required: Flag, default = true;
    }

    /// What is written about requests and events.
    Log "[log]" {
        /// The form of the access log on standard output: "text", "json" or "off".
        access: AccessLog, default = "text";
        /// What goes to standard error: a level, or a filter such as "warn,headworks=debug".
        level: Level, default = "info";
    }

    /// The port for metrics and health.
    Admin "[admin]" {
        /// Where to listen: an address, which needs a `token` if it is not this machine's own, or "unix:" and a path.
        listen: Located<ListenAddress>, default = "127.0.0.1:9901";
        /// The permissions of a unix socket; "0600" when absent.
        mode: Located<Mode>, optional;
        /// What must come as `Authorization: Bearer`; absent, whoever reaches the port may ask.
        token: Tried<Token>, optional;
        /// Pages that answer without the token: "/live", "/ready", "/metrics".
        open: Many<OpenPage>, default = ["/live", "/ready"];
    }

    /// What instances share: a Redis or Valkey server.
    Store "[store]" {
        /// Where it is: `redis://` or `rediss://` (TLS) with a host, a port (6379 when absent) and perhaps `/` and the
        /// number of a database; or `unix:` with a path.
        url: Tried<StoreUrl>, required;
        /// The user of the password, where the store knows several.
        username: Free, optional;
        /// Its password; absent, it asks for none.
        password: Hidden, optional;
        /// PEM file of the authorities that its certificate may be of; absent, the system's.
        ca: Tried<File>, optional;
        /// The beginning of every key there: instances with the same share their limits.
        prefix: Name, default = "headworks";
        /// Mixed into the hashes of what is counted, so that nobody who reads the store can guess it; the same everywhere.
        secret: Hidden, optional;
        /// How long a request waits for the first answer about its key, before this instance's own share decides.
        wait: Time, default = "5ms";
        /// How many instances there are at least; those that live are counted.
        instances: Number<1, 10_000>, default = 1;
    }

    /// How much one stream may hold, and how long its reader may stall.
    Stream "[stream]" {
        /// Bytes that one stream may hold in each of its buffers.
        buffer: Size<{ 8 * KIB }, { 16 * MIB }>, default = "16KiB";
        /// A client that takes nothing for this long is cut.
        stall_timeout: Time, default = "30s";
        /// A client that sends nothing of its body for this long, while it is waited for, is cut; or "off".
        upload_timeout: OrOff, default = "30s";
        /// Bytes a second that a body must come with, as a mean over 10 s of waiting; or "off".
        upload_rate: Off<Size<1, { 1 << 30 }>>, default = "100B";
    }

    /// A service behind the proxy.
    Upstream "[upstream.NAME]" {
        /// Where it is: `http://`, `https://` or `h2c://` with host and port, or `unix:` with a path; or a table with
        /// more than that.
        endpoints: Many<Located<Listed>>, required;
        /// The version of HTTP: "auto" goes by the scheme and by ALPN; or "h1", "h2".
        protocol: Located<Protocol>, default = "auto";
        /// What goes into Host: "keep" what the client asked for, the "endpoint", or a name.
        host: HostPolicy, default = "keep";
        /// The credits of each endpoint.
        limit: Limit, default = {};
        /// Which endpoint gets a request.
        balance: Balance, default = {};
        /// The waiting queue in front of all endpoints.
        queue: Queue, default = {};
        /// When endpoints are left out for a while; or "off": never.
        breaker: Off<Breaker>, default = {};
        /// Checks of each endpoint beside the requests; absent, there are none.
        health: Health, optional;
        /// When a request is tried again.
        retry: Retry, default = {};
        /// The clocks of a call.
        timeout: UpstreamTimeout, default = {};
        /// The bounds of the connection pool, per endpoint.
        pool: Pool, default = {};
        /// TLS towards `https://` endpoints; absent, the system's authorities are trusted.
        tls: UpstreamTls, optional;
    }

    /// An endpoint with more than its address.
    Endpoint "an endpoint" {
        /// Where it is.
        url: EndpointSettings, required;
        /// How many times the share of an endpoint with a weight of 1 it gets.
        weight: Located<Number<1, 1000>>, default = 1;
        /// The zone it is in.
        zone: Name, optional;
    }

    /// Which endpoint gets a request.
    Balance "`balance`" {
        /// `least_loaded` is where answers come soonest, for the requests that are there; in turns, `round_robin` or
        /// `weighted`; or, with `hash`, the same one for the same key.
        policy: Located<Policy>, default = "least_loaded";
        /// The key of `hash`.
        by: Tried<Located<Key>>, optional;
        /// How long an endpoint that is new or back is spared: from a tenth of its share to all of it; or "off".
        slow_start: OrOff, default = "10s";
    }

    /// The credits of each endpoint.
    Limit "`limit`" {
        /// Requests in flight at once, each until its response body has ended: "adaptive" is found by measuring; or a
        /// number, or a table that says how it is found.
        in_flight: InFlight, default = "adaptive";
        /// Event streams, upgrades and gRPC streams, counted apart; absent, they count as requests in flight when that is
        /// a number, and are 1024 otherwise.
        streams: Count, optional;
        /// Whether what an endpoint reports of its load lowers its credits: ORCA's `endpoint-load-metrics`,
        /// `x-headworks-credit`, `x-headworks-queue-delay-ms`.
        published: Flag, default = true;
        /// Whether clients see these reports.
        pass_reports: Flag, default = false;
        /// Who is asked for the credits of the endpoints; absent, nobody.
        agent: Agent, optional;
        /// Nobody waits or is refused for want of credit; those who would are only counted and logged.
        dry_run: Flag, default = false;
    }

    /// Who is asked for the credits of the endpoints.
    Agent "`agent`" {
        /// Where it answers GET: `http://` or `https://`; `{endpoint}` stands for the host and port of each endpoint.
        url: Located<AgentUrl>, required;
        /// How often it is asked, give or take a tenth; 100ms to 5s.
        interval: Located<Time>, default = "1s";
    }

    /// The waiting queue in front of all endpoints.
    Queue "`queue`" {
        /// How many may wait; 0 refuses at once when all credits are taken.
        max: Number<0, 1_000_000>, default = 1024;
        /// Bytes that the heads of those who wait may hold together; bodies are not read before.
        max_bytes: Size<{ 8 * KIB }, TIB>, default = "16MiB";
        /// How long one may wait.
        timeout: Wait, default = "1s";
        /// Who is next: "fifo", "lifo", by "priority", by "deadline", or "fair" among keys.
        order: Order, default = "fifo";
        /// Who goes when there is no place: the newest, the oldest, the lowest, or one of the same key.
        drop: Located<DropPolicy>, default = "reject_newest";
        /// Whether waits are kept short, and the newest served first, while more comes than is served.
        controlled_delay: Flag, default = true;
        /// What is fair, partitioned or replaced: the "client", another part of the request, or a list of parts.
        by: Located<Key>, optional;
        /// Values of the one field that `by` names, with how many shares each gets.
        weights: Weights, default = {};
        /// Queues that keys are dealt to, none of which may have more places or credits than it leaves free.
        partitions: Number<2, 1024>, optional;
        /// Queues that each key may stand in.
        hand: Number<1, 8>, default = 4;
    }

    /// When endpoints are left out for a while.
    Breaker "`breaker`" {
        /// An endpoint is left out after so many requests in a row that found no connection or got no answer.
        failures: Number<1, 1000>, default = 5;
        /// For how long, the first time and at most; it doubles until ten calm seconds forget one doubling.
        open: Growing, default = "1s..60s";
        /// The share of the endpoints that is left out at once at most; one always may be, if another is well.
        max_out: Share, default = "30%";
    }

    /// Checks of each endpoint beside the requests.
    Health "`health`" {
        /// "http" asks for `path`, "tcp" opens a connection, "grpc" asks for `service` by grpc.health.v1.
        kind: Located<Kind>, default = "http";
        /// What is asked for by GET.
        path: CheckPath, default = "/";
        /// The statuses that are good, such as "200-299" or "200, 204".
        expect: Statuses, default = "200-399";
        /// The gRPC service that is asked for; empty, the server as a whole.
        service: Free, default = "";
        /// How often, give or take a tenth.
        interval: Time, default = "5s";
        /// How long an endpoint may take to answer.
        timeout: Time, default = "1s";
        /// So many in a row that pass bring an endpoint back.
        healthy: Number<1, 1000>, default = 2;
        /// So many in a row that fail take it out, unless no endpoint would be left.
        unhealthy: Number<1, 1000>, default = 3;
    }

    /// The clocks of a call.
    UpstreamTimeout "`timeout`" {
        /// DNS, TCP and TLS together, and waiting for a free connection.
        connect: Time, default = "2s";
        /// From the request's head sent to the response's head, or "off".
        first_byte: OrOff, default = "60s";
        /// The longest silence within a response body, or "off".
        idle: OrOff, default = "120s";
        /// The whole exchange, from receipt to the last byte, or "off".
        total: OrOff, default = "off";
    }

    /// The bounds of the connection pool, per endpoint.
    Pool "`pool`" {
        /// Connections at most, in use and idle together; "auto" is one for each credit that there can be. A smaller
        /// number also bounds an adaptive limit where each request needs a connection of its own (HTTP/1.1).
        max_connections: OrAuto<Count>, default = "auto";
        /// Idle connections kept at most.
        max_idle: Number<0, 1_000_000>, default = 128;
        /// An idle connection is closed after this time; keep it below the service's own keep-alive time.
        idle_timeout: Time, default = "4s";
        /// HTTP/2 streams at most on one connection; the service may allow fewer.
        max_streams: Number<1, 100_000>, default = 100;
        /// The kernel's receive buffer for each connection: what a service can send ahead of a slow reader. "auto"
        /// lets the kernel grow it, for fast transfers over long distances.
        receive_buffer: OrAuto<Size<{ 4 * KIB }, { 16 * MIB }>>, default = "64KiB";
    }

    /// TLS towards an upstream.
    UpstreamTls "`tls`" {
        /// PEM file of the authorities to trust instead of the system's.
        ca: File, optional;
        /// PEM file of the certificate chain shown to the service; needs `key`.
        cert: Tried<File>, optional;
        /// PEM file of its private key; needs `cert`.
        key: Tried<File>, optional;
        /// The name to ask for and to verify when it is not the endpoint's host.
        server_name: Located<HostPattern>, optional;
    }

    /// What is done with which requests. The most specific route that matches is taken, then the first in the file.
    Route "[[route]]" {
        /// What logs, metrics and `explain` call it; `route-1`, `route-2`, ... when absent.
        name: Located<Name>, optional;
        /// Which requests; absent, all.
        r#match: Match, default = {};
        /// Forwards to this upstream.
        upstream: Tried<Located<Name>>, optional;
        /// Answers by itself.
        respond: Tried<Respond>, optional;
        /// Sends the client elsewhere.
        redirect: Tried<Redirect>, optional;
        /// The prefix that is taken off the path, in whole segments.
        strip_prefix: Located<Prefix>, optional;
        /// What comes in its place, or before the path when nothing is taken off.
        replace_prefix: Located<Prefix>, optional;
        /// Protocols that a client may switch to; "h2c" is never passed on.
        upgrade: Many<Switch>, default = ["websocket"];
        /// Whether a client of HTTP/1.1 that closes its sending half still waits for its answer.
        allow_half_close: Flag, default = false;
        /// Fields set, added and removed.
        headers: Headers, default = {};
        /// Rates per key; all must have room.
        rate_limit: Many<RateLimit>, default = [];
        /// What is done wrong on purpose.
        fault: Fault, optional;
        /// The clocks of a call, where they differ from the upstream's.
        timeout: RouteTimeout, optional;
        /// How much its requests matter when not all can be served: a class, or a table that says who may name another.
        priority: Located<PriorityOf>, optional;
        /// What is not tried at all.
        shed: Shed, optional;
        /// What clients say of the time that they wait.
        deadline: Deadline, optional;
        /// When a request is tried again, where it differs from the upstream's.
        retry: RouteRetry, optional;
        /// Bytes of a request's body at most, or "off", where it differs from `[server]`.
        max_body_size: Off<Size<1, TIB>>, optional;
        /// The client's clocks, where they differ from `[stream]`.
        stream: RouteStream, default = {};
        /// Whether answers say how much the upstream has to do, for a proxy in front: `endpoint-load-metrics` and
        /// `x-headworks-credit`.
        publish_pressure: Flag, default = false;
    }

    /// Which requests. Every part that is set must match.
    Match "`match`" {
        /// The name of a listener.
        listener: Located<Name>, optional;
        /// The request's host without port: a name, or `*.` and a name.
        host: HostPattern, optional;
        /// The request's path, or the beginning of it and `/*`.
        path: PathPattern, optional;
        /// Any of these; absent, every method.
        methods: Many<Method>, default = [];
        /// All of these fields, each with this value or, with `true`, with any.
        headers: Fields<FieldTest>, default = {};
    }

    /// An answer by the proxy itself.
    Respond "`respond`" {
        /// The status.
        status: Located<Number<200, 599>>, default = 200;
        /// The type of the body.
        content_type: FieldValue, default = "text/plain; charset=utf-8";
        /// The body.
        body: Free, default = "";
    }

    /// Sends the client elsewhere.
    Redirect "`redirect`" {
        /// Where: `{host}`, `{path}` and `{query}` stand for the request's own; the query comes with its `?`.
        to: Target, required;
        /// 301, 302, 303, 307 or 308.
        status: Located<Number<300, 399>>, default = 308;
    }

    /// Fields set, added and removed.
    Headers "`headers`" {
        /// Before the request is forwarded.
        request: Edit, default = {};
        /// Before the response is sent.
        response: Edit, default = {};
    }

    /// Changes of one side, in this order: remove, set, add.
    Edit "a table of edits" {
        /// Fields that get exactly this value.
        set: Fields<FieldValue>, default = {};
        /// Fields that get one more value.
        add: Fields<FieldValue>, default = {};
        /// Fields that go.
        remove: Many<Located<HeaderName>>, default = [];
    }

    /// A rate per key.
    RateLimit "`rate_limit`" {
        /// What answers, logs and metrics call it; `limit-1`, `limit-2`, ... when absent.
        name: Located<Name>, optional;
        /// What is counted apart: the "client", another part of the request, a list of parts, or "all" together.
        by: Key, default = "client";
        /// What is counted: requests, or the bytes of their bodies or of their answers'.
        cost: Cost, default = "requests";
        /// Requests, or bytes such as "10MiB/s", per second, minute or hour.
        rate: Located<Rate>, required;
        /// Requests or bytes that may come at once; the amount of the rate when absent.
        burst: Located<Amount>, optional;
        /// Keys remembered at most.
        max_keys: Number<1, 10_000_000>, default = 100000;
        /// Whether it only counts and logs what it would have refused.
        dry_run: Flag, default = false;
        /// Whether all instances with the same `[store]` count together.
        shared: Located<Flag>, default = false;
        /// When the rate is higher.
        surge: Many<Surge>, default = [];
        /// Those who ask most, and what they may have when others want it; absent, all are equal.
        top_talkers: TopTalkers, optional;
    }

    /// Hours in which a rate is higher.
    Surge "`surge`" {
        /// Days of the week in UTC, such as "mon-fri" or "sat,sun".
        days: Days, default = "mon-sun";
        /// The time of day in UTC at which it begins.
        from: Located<TimeOfDay>, required;
        /// The time of day at which it ends; one that is earlier belongs to the next day.
        to: TimeOfDay, required;
        /// How many times higher, from 1 to 100.
        factor: Factor, required;
        /// How long it takes to come down afterwards.
        ramp: Ramp, default = "1m";
    }

    /// Those who ask most.
    TopTalkers "`top_talkers`" {
        /// Who they are told apart by; as `by` of the limit.
        by: Key, default = "client";
        /// How many of them.
        count: Number<1, 100>, default = 10;
        /// Of the rate, for all of them together.
        share: Percent, default = "10%";
    }

    /// What is done wrong on purpose, to see what clients and alarms make of it.
    Fault "`fault`" {
        /// The share of requests that it is done to.
        share: Share, default = "100%";
        /// How long one waits before anything else is done with it.
        delay: Time, optional;
        /// Answers with this status in the upstream's place; "reset" cuts without an answer.
        abort: Abort, optional;
        /// Bytes a second with which the answer's body is handed on.
        slow_body: Pace, optional;
        /// How long nothing more of the answer is read after its first part.
        stall: Time, optional;
    }

    /// The clocks of a call, where they differ from the upstream's.
    RouteTimeout "`timeout` of a route" {
        /// From the request's head sent to the response's head, or "off".
        first_byte: OrOff, optional;
        /// The longest silence within a response body, or "off".
        idle: OrOff, optional;
        /// The whole exchange, from receipt to the last byte, or "off".
        total: OrOff, optional;
    }

    /// How much the requests of a route matter.
    PriorityTable "`priority`" {
        /// Where nothing else is said: "background", "default", "critical", or "protected", which is never shed.
        class: Priority, default = "default";
        /// The field in which a request may name another class; in the field "priority" it is the urgency of RFC 9218.
        header: HeaderName, optional;
        /// Addresses, as seen through `server.trusted_proxies`, or "unix", whose requests may raise their class with it;
        /// everybody may lower.
        trusted: Peers, default = [];
        /// The same for requests that have one of these fields with its value.
        trusted_fields: Fields<FieldValue>, default = {};
    }

    /// What is not tried at all.
    Shed "`shed`" {
        /// The share of requests that must succeed; while fewer do, a part is turned away untried. Or "off".
        success_rate: Off<Share>, default = "off";
    }

    /// What clients say of the time that they wait.
    Deadline "`deadline`" {
        /// Fields in which they are believed; a client can only shorten its time.
        from: Many<TimeField>, default = [
            "grpc-timeout", "connect-timeout-ms", "x-request-timeout", "request-timeout",
            "x-envoy-expected-rq-timeout-ms", "x-stainless-timeout", "x-stainless-read-timeout"
        ];
        /// A longer time counts as this; absent, any is taken.
        max: Time, optional;
        /// Fields in which the service is told what is left, the route's own time included; absent, those that the
        /// client sent, each less what was spent.
        send: Many<TimeField>, default = [];
    }

    /// The client's clocks, where they differ from `[stream]`.
    RouteStream "`stream` of a route" {
        /// A client that takes nothing for this long is cut.
        stall_timeout: Time, optional;
        /// A client that sends nothing of its body for this long, while it is waited for, is cut; or "off".
        upload_timeout: OrOff, optional;
        /// Bytes a second that a body must come with, as a mean over 10 s of waiting; or "off".
        upload_rate: Off<Size<1, { 1 << 30 }>>, optional;
    }
}
