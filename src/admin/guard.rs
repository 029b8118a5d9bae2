//! Who may ask for what.
//!
//! A page in a browser of this host reaches the loopback. It cannot choose the header `Host` beyond the names that lead here, so
//! a name of somebody else that was pointed to this host is refused, and it cannot send JSON to another origin unasked.

use std::net::IpAddr;

use hyper::StatusCode;
use hyper::Uri;
use hyper::header::AUTHORIZATION;
use hyper::header::CONTENT_TYPE;
use hyper::header::HOST;
use hyper::header::HeaderMap;
use hyper::header::HeaderName;
use hyper::header::ORIGIN;
use hyper::http::request::Parts;
use hyper::http::uri::Authority;

use crate::admin::answer::Denied;
use crate::admin::doors::Side;
use crate::config::AdminConfig;
use crate::config::Token;
use crate::transport::Address;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To see whether the process is well.
    Health,
    /// To read.
    Reading,
    /// To change something.
    Change,
}

/// The rules of one configuration.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    // In lower case.
    hosts: Vec<String>,
    token: Option<Token>,
}

impl Rules {
    pub(crate) fn new(config: &AdminConfig) -> Self {
        let mut hosts = config.hosts.clone();
        hosts.extend(config.addresses().into_iter().filter_map(|address| match address {
            Address::Tcp { host, .. } => Some(host.to_ascii_lowercase()),
            // No admin address is one of the last two.
            Address::Unix(_) | Address::Tls { .. } | Address::Systemd(_) => None,
        }));
        Self { hosts, token: config.token.clone() }
    }

    /// Whether the request asks one of our names.
    ///
    /// # Errors
    /// It does not: 421.
    pub(crate) fn check_host(&self, request: &Parts) -> Result<(), Denied> {
        let named = host_of(&request.headers);
        let is_ours = |authority: &Authority| self.has(authority.host());
        // A request for a proxy names a host twice.
        if named.as_ref().is_some_and(is_ours) && request.uri.authority().is_none_or(is_ours) {
            return Ok(());
        }
        Err(Denied::new(
            StatusCode::MISDIRECTED_REQUEST,
            "host",
            "the header Host is not a name of this process",
            "ask for localhost or an address of the loopback, or add the name to `admin_hosts`",
        ))
    }

    fn has(&self, host: &str) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        let is_loopback = host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        host == "localhost" || is_loopback || self.hosts.iter().any(|known| known == host)
    }

    /// Whether whoever comes from this side may do that.
    ///
    /// # Errors
    /// 403 where a page of another site asks, and where only a token would help that is not configured; 415 without JSON; 401
    /// for a token that is wrong or missing.
    pub(crate) fn check(&self, request: &Parts, side: Side, purpose: Purpose) -> Result<(), Denied> {
        if purpose == Purpose::Change {
            check_origin(request)?;
            check_type(request)?;
        }
        if purpose == Purpose::Health || side == Side::Unix {
            return Ok(());
        }
        let needed = purpose == Purpose::Change || side == Side::Network;
        match (&self.token, request.headers.get(AUTHORIZATION)) {
            (None, _) if needed => Err(Denied::new(
                StatusCode::FORBIDDEN,
                "token",
                "on TCP only reading is allowed without a token, and none is configured",
                "ask on the unix socket, or name the file of a token in `admin_token_file`",
            )),
            (None, _) => Ok(()),
            (Some(_), None) if !needed => Ok(()),
            (Some(token), Some(presented)) if bearer(presented.as_bytes()).is_some_and(|it| token.is(it)) => {
                Ok(())
            }
            (Some(_), presented) => Err(Denied::new(
                StatusCode::UNAUTHORIZED,
                "token",
                if presented.is_some() { "the token is wrong" } else { "a token is missing" },
                "send the header `Authorization: Bearer TOKEN` with what `admin_token_file` holds; commands take --token-file",
            )),
        }
    }
}

/// The one header `Host`.
fn host_of(headers: &HeaderMap) -> Option<Authority> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().filter(|_| hosts.next().is_none())?;
    Authority::try_from(host.as_bytes()).ok()
}

/// Pages say where they come from; programs do not.
fn check_origin(request: &Parts) -> Result<(), Denied> {
    let headers = &request.headers;
    let is_cross_site = headers.get(SEC_FETCH_SITE).is_some_and(|site| site == "cross-site");
    let own = host_of(headers);
    let is_own = |origin: &hyper::header::HeaderValue| {
        let origin = Uri::try_from(origin.as_bytes()).ok();
        origin.and_then(|origin| origin.into_parts().authority).is_some_and(|from| Some(from) == own)
    };
    if !is_cross_site && headers.get_all(ORIGIN).iter().all(is_own) {
        return Ok(());
    }
    Err(Denied::new(
        StatusCode::FORBIDDEN,
        "origin",
        "a page of another site asks",
        "ask from a program, or from the status page of this process",
    ))
}

/// A form cannot send JSON, and a script of another origin has to ask for leave first, which it does not get.
fn check_type(request: &Parts) -> Result<(), Denied> {
    let written = request.headers.get(CONTENT_TYPE).and_then(|written| written.to_str().ok()).unwrap_or("");
    let essence = written.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Denied::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "content_type",
        "a POST needs `Content-Type: application/json`",
        "send that header; the body may be empty",
    ))
}

/// The token of `Bearer TOKEN`.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| token.trim_ascii())
}

const SCHEME: &[u8] = b"Bearer ";
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

#[cfg(test)]
mod tests {
    use std::fs;

    use hyper::Request;

    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let request = Request::builder().uri(uri);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    fn rules(token: Option<&str>) -> Rules {
        let token = token.map(|token| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), token).unwrap();
            Token::read(file.path()).unwrap()
        });
        Rules::new(&AdminConfig {
            listen: Some(vec!["tcp://10.0.0.5:9653".parse().unwrap()]),
            hosts: vec!["tap1.example".to_owned()],
            token,
            ..AdminConfig::default()
        })
    }

    #[test]
    fn only_names_of_this_process_are_answered() {
        let asks = |uri: &str, hosts: &[&str]| {
            let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            rules(None).check_host(&request(uri, &headers)).map_err(|denied| denied.status.as_u16())
        };
        for host in [
            "localhost",
            "LOCALHOST:9653",
            "localhost.",
            "127.0.0.1",
            "127.9.9.9:1",
            "[::1]:9653",
            "[::1]",
            "10.0.0.5:9653",
            "Tap1.example",
        ] {
            assert_eq!(asks("/livez", &[host]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "10.0.0.6",
            "0.0.0.0",
            "[::]",
            "127.0.0.1.evil.example",
            "a@b@c",
            "",
            "tap1.example.evil",
        ] {
            assert_eq!(asks("/livez", &[host]), Err(421), "{host}");
        }
        assert_eq!(asks("/livez", &[]), Err(421));
        assert_eq!(asks("/livez", &["localhost", "localhost"]), Err(421));
        assert_eq!(asks("http://evil.example/livez", &["localhost"]), Err(421));
        assert_eq!(asks("http://localhost/livez", &["localhost"]), Ok(()));
    }

    #[test]
    fn pages_of_other_sites_change_nothing() {
        let json = [("host", "localhost:9653"), ("content-type", "application/json; charset=utf-8")];
        let asks = |more: &[(&str, &str)]| {
            let headers = [&json[..], more].concat();
            let check = rules(None).check(&request("/", &headers), Side::Unix, Purpose::Change);
            check.map_err(|denied| (denied.status.as_u16(), denied.code))
        };
        assert_eq!(asks(&[]), Ok(()));
        assert_eq!(asks(&[("origin", "http://localhost:9653"), ("sec-fetch-site", "same-origin")]), Ok(()));
        for origin in [
            "http://evil.example",
            "null",
            "http://localhost:3000",
            "http://localhost",
            "https://localhost:9653.evil.example",
            "x y",
        ] {
            assert_eq!(asks(&[("origin", origin)]), Err((403, "origin")), "{origin}");
        }
        assert_eq!(asks(&[("sec-fetch-site", "cross-site")]), Err((403, "origin")));
        for headers in [&[][..], &[("content-type", "text/plain")], &[("content-type", "application/jsonx")]]
        {
            let check = rules(None).check(&request("/", headers), Side::Unix, Purpose::Change);
            assert_eq!(check.unwrap_err().status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
    }

    #[test]
    fn a_token_is_needed_for_changes_on_tcp_and_for_everything_from_the_network() {
        let with = |token: Option<&str>, sent: Option<&str>, side, purpose| {
            let mut headers = vec![("content-type", "application/json")];
            headers.extend(sent.map(|sent| ("authorization", sent)));
            let check = rules(token).check(&request("/", &headers), side, purpose);
            check.map_or_else(|denied| denied.status.as_u16(), |()| 200)
        };
        use Purpose::{Change, Health, Reading};
        use Side::{Loopback, Network, Unix};
        // Right, wrong and no token where one is configured; where none is: with one, without.
        for (side, purpose, expected) in [
            (Unix, Health, [200, 200, 200, 200, 200]),
            (Unix, Reading, [200, 200, 200, 200, 200]),
            (Unix, Change, [200, 200, 200, 200, 200]),
            (Loopback, Health, [200, 200, 200, 200, 200]),
            (Loopback, Reading, [200, 401, 200, 200, 200]),
            (Loopback, Change, [200, 401, 401, 403, 403]),
            (Network, Health, [200, 200, 200, 200, 200]),
            (Network, Reading, [200, 401, 401, 403, 403]),
            (Network, Change, [200, 401, 401, 403, 403]),
        ] {
            let (right, wrong) = (Some("bearer geheim"), Some("Bearer geheim2"));
            let found = [
                with(Some("geheim"), right, side, purpose),
                with(Some("geheim"), wrong, side, purpose),
                with(Some("geheim"), None, side, purpose),
                with(None, right, side, purpose),
                with(None, None, side, purpose),
            ];
            assert_eq!(found, expected, "{side:?} {purpose:?}");
        }
        assert_eq!(with(Some("geheim"), Some("Basic geheim"), Loopback, Reading), 401);
        assert_eq!(with(Some("geheim"), Some("Bearer"), Loopback, Reading), 401);
    }
}
