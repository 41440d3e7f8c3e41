//! Where a judge is asked.

use std::net::IpAddr;

use ureq::http::Uri;

use super::JudgeError;

/// The address of a judge, fit to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// All of its URL.
    pub(super) url: String,
    /// Whether it is on this machine.
    pub(super) is_loopback: bool,
}

impl Endpoint {
    /// Understands a host, a base as OpenAI's own clients take it (`https://host/v1`), and the URL
    /// of chat completions itself.
    pub(super) fn parse(text: &str, danger_allow_http: bool) -> Result<Self, JudgeError> {
        // It may hold a password: what is wrong with it is said without it.
        if text.contains('@') {
            return Err(refused("(hidden)", "a name or password has no place in it"));
        }
        let uri: Uri = text
            .trim()
            .parse()
            .map_err(|_| refused(text, "it is no URL"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(refused(text, "it does not begin with https://"));
        };
        if uri.query().is_some() {
            return Err(refused(text, "it has a query (`?`)"));
        }
        let is_loopback = is_loopback(authority.host());
        match scheme {
            "https" => {}
            "http" if is_loopback || danger_allow_http => {}
            "http" => {
                return Err(JudgeError::PlainHttp {
                    endpoint: text.to_owned(),
                });
            }
            _ => return Err(refused(text, "it does not begin with https://")),
        }
        let path = match uri.path().trim_end_matches('/') {
            "" => "/v1/chat/completions".to_owned(),
            whole if whole.ends_with("/chat/completions") => whole.to_owned(),
            base => format!("{base}/chat/completions"),
        };
        Ok(Self {
            url: format!("{scheme}://{authority}{path}"),
            is_loopback,
        })
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address: Option<IpAddr> = bare.parse().ok();
    host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback())
}

fn refused(endpoint: &str, reason: &'static str) -> JudgeError {
    JudgeError::Endpoint {
        endpoint: endpoint.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_bases_and_whole_urls_are_understood() {
        let url = |text| Endpoint::parse(text, false).unwrap().url;
        let openai = "https://api.openai.com/v1/chat/completions";
        assert_eq!(url("https://api.openai.com"), openai);
        assert_eq!(url("https://api.openai.com/"), openai);
        assert_eq!(url("https://api.openai.com/v1/"), openai);
        assert_eq!(url(openai), openai);
        assert_eq!(
            url("https://host:8443/v1beta/openai"),
            "https://host:8443/v1beta/openai/chat/completions"
        );
        assert_eq!(
            url("http://[::1]:8000"),
            "http://[::1]:8000/v1/chat/completions"
        );
    }

    #[test]
    fn plain_http_stays_on_this_machine() {
        for local in ["http://127.0.0.1:1", "http://localhost", "http://[::1]/v1"] {
            assert!(Endpoint::parse(local, false).unwrap().is_loopback);
        }
        for other in [
            "http://127.0.0.1.example.org",
            "http://localhost.example",
            "http://10.0.0.1",
        ] {
            let error = Endpoint::parse(other, false).unwrap_err();
            assert!(matches!(error, JudgeError::PlainHttp { .. }), "{other}");
            assert!(!Endpoint::parse(other, true).unwrap().is_loopback);
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        for bad in [
            "",
            "api.openai.com",
            "ftp://host",
            "https://",
            "https://host/v1?key=1",
        ] {
            let error = Endpoint::parse(bad, true).unwrap_err();
            assert!(matches!(error, JudgeError::Endpoint { .. }), "{bad:?}");
        }
        let error = Endpoint::parse("https://me:hunter2@host/v1", true).unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
