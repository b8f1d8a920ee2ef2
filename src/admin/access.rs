//! Who may ask for what.
//!
//! With a token, who shows it; but for the pages that are open. Without one the port can be reached from this machine
//! only, and whoever is on it may ask: over a unix socket, whoever may open its file. A browser on it may be led by a
//! page from elsewhere; so `Host` must be an address or `localhost` (a name could be anybody's, and be made to point
//! here), and what a browser says comes from another site is refused, as is a form.

use std::net::IpAddr;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use http::{HeaderMap, StatusCode};

use super::operator::Denied;
use crate::config::{self, ListenAddress, OpenPage, Token};
use crate::context::{asked_authority, without_port};

/// The rules of one admin port.
#[derive(Clone, Debug)]
pub(super) struct Access {
    token: Option<Token>,
    open: Vec<OpenPage>,
    /// Only who may open the socket's file comes here, and no browser.
    is_unix: bool,
}

impl Access {
    pub(super) fn new(settings: &config::Admin) -> Self {
        let is_unix = matches!(settings.listen, ListenAddress::Unix(_));
        Self { token: settings.token.clone(), open: settings.open.clone(), is_unix }
    }

    /// Whether whoever asks may see this page.
    pub(super) fn is_open(&self, page: OpenPage) -> bool {
        self.open.contains(&page)
    }

    /// Says no, and why, to what may not be asked.
    pub(super) fn check<B>(&self, request: &http::Request<B>, is_write: bool) -> Result<(), Denied> {
        let headers = request.headers();
        if let Some(token) = &self.token {
            return if bearer(headers).is_some_and(|shown| same(shown, token.text().as_bytes())) {
                from_elsewhere(headers, is_write)
            } else {
                Err(Denied::new(StatusCode::UNAUTHORIZED, "a token is needed: `Authorization: Bearer TOKEN`"))
            };
        }
        if !self.is_unix && !is_own_name(without_port(asked_authority(request.uri(), headers))) {
            return Err(forbidden("without a token, Host must be an address or `localhost`"));
        }
        from_elsewhere(headers, is_write)
    }
}

fn forbidden(why: &str) -> Denied {
    Denied::new(StatusCode::FORBIDDEN, why)
}

/// Refuses what a browser sends on behalf of a page that is not ours.
fn from_elsewhere(headers: &HeaderMap, is_write: bool) -> Result<(), Denied> {
    let text = |name| headers.get(name).map(|value: &http::HeaderValue| value.to_str().unwrap_or("?"));
    let host = text(HOST.as_str()).unwrap_or_default();
    let is_ours = |origin: &str| origin.split_once("://").is_some_and(|(_, authority)| authority == host);
    if text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return Err(forbidden("a page of another site sent this"));
    }
    if text(ORIGIN.as_str()).is_some_and(|origin| !is_ours(origin)) {
        return Err(forbidden("a page of another origin sent this"));
    }
    // A form is all that an old browser can send elsewhere without asking first.
    if is_write && headers.contains_key(CONTENT_TYPE) {
        return Err(Denied::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "this takes no body, and so no type of one"));
    }
    Ok(())
}

/// A name that no stranger can make point here.
fn is_own_name(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    let (line, None) = (lines.next()?.as_bytes(), lines.next()) else { return None };
    let (scheme, token) = line.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// Compares in a time that does not tell how much of it is right; the length is no secret.
fn same(shown: &[u8], token: &[u8]) -> bool {
    let differences = shown.iter().zip(token).fold(0, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
    shown.len() == token.len() && differences == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use std::path::Path;

    fn access(admin: &str) -> Access {
        let text = format!("[[route]]\nrespond = {{}}\n[admin]\n{admin}\n");
        let config = config::parse(&text, "x.toml", Path::new("")).expect("a configuration");
        Access::new(&config.admin.expect("an admin port"))
    }

    fn status(access: &Access, is_write: bool, fields: &[(&str, &str)]) -> u16 {
        let request = fields.iter().fold(Request::builder().uri("/reload"), |r, (name, value)| r.header(*name, *value));
        let request = request.body(()).expect("a request");
        access.check(&request, is_write).map_or_else(|denied| denied.status.as_u16(), |()| 200)
    }

    #[test]
    fn without_a_token_only_this_machine_itself_may_ask() {
        let open = access("");
        for host in ["127.0.0.1:9901", "[::1]:9901", "localhost:9901", "LOCALHOST", "10.0.0.1"] {
            assert_eq!(status(&open, true, &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:9901", "", "[::1].x"] {
            assert_eq!(status(&open, false, &[("host", host)]), 403, "{host}");
        }
        assert_eq!(status(&open, false, &[]), 403);
    }

    #[test]
    fn a_browser_may_not_be_led_here() {
        let open = access("");
        let with = |write, name, value| status(&open, write, &[("host", "127.0.0.1:9901"), (name, value)]);
        assert_eq!(with(false, "sec-fetch-site", "cross-site"), 403);
        assert_eq!(with(false, "sec-fetch-site", "same-site"), 403);
        assert_eq!(with(true, "sec-fetch-site", "same-origin"), 200);
        assert_eq!(with(true, "origin", "https://evil.example"), 403);
        assert_eq!(with(true, "origin", "null"), 403);
        assert_eq!(with(true, "origin", "http://127.0.0.1:9901"), 200);
        assert_eq!(with(true, "content-type", "application/x-www-form-urlencoded"), 415);
        assert_eq!(with(false, "content-type", "text/plain"), 200);
    }

    #[test]
    fn a_token_opens_from_anywhere_and_nothing_else_does() {
        let access = access("listen = '0.0.0.0:9901'\ntoken = '0123456789abcdef'");
        let with = |value| status(&access, true, &[("host", "admin.example"), ("authorization", value)]);
        assert_eq!(with("Bearer 0123456789abcdef"), 200);
        assert_eq!(with("bearer 0123456789abcdef"), 200);
        for wrong in ["Bearer 0123456789abcdeF", "Bearer 0123456789abcde", "Bearer ", "Basic 0123456789abcdef", "x", ""]
        {
            assert_eq!(with(wrong), 401, "{wrong}");
        }
        assert_eq!(status(&access, false, &[("host", "127.0.0.1")]), 401);
        let twice = [("authorization", "Bearer 0123456789abcdef"), ("authorization", "Bearer x")];
        assert_eq!(status(&access, true, &twice), 401);
    }

    #[test]
    fn over_a_unix_socket_any_name_will_do() {
        let unix = access("listen = 'unix:/run/x.sock'");
        assert_eq!(status(&unix, true, &[("host", "headworks")]), 200);
        let unix = access("listen = 'unix:/run/x.sock'\ntoken = '0123456789abcdef'");
        assert_eq!(status(&unix, true, &[("host", "headworks")]), 401, "a token that is set is asked for");
    }

    #[test]
    fn pages_are_open_as_the_file_says() {
        let open =
            |access: &Access| [OpenPage::Live, OpenPage::Ready, OpenPage::Metrics].map(|page| access.is_open(page));
        assert_eq!(open(&access("")), [true, true, false]);
        assert_eq!(open(&access("open = []")), [false; 3]);
        assert_eq!(open(&access("open = '/metrics'")), [false, false, true]);
    }
}
