//! Query parameters: each route names those it knows, and others are refused.

use std::borrow::Cow;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRequestParts, MatchedPath};
use axum::http::Method;
use axum::http::request::Parts;
use cellbus_bus::ids::InvalidId;
use cellbus_bus::job::Labels;

use super::problem::Problem;
use super::routes::ROUTES;

/// The most rows of a page.
pub(super) const LIMIT_MAX: usize = 1_000;
/// Rows of a page when the caller does not say.
const LIMIT_DEFAULT: usize = 100;
/// Parameters of one request.
const PARAMETERS_MAX: usize = 80;

/// The parameters of a request, checked against what its route knows.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let path = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
        // A HEAD is answered by the handler of GET.
        let method = if parts.method == Method::HEAD { "GET" } else { parts.method.as_str() };
        let route = ROUTES.iter().find(|route| route.path == path && route.method == method);
        Self::parse(parts.uri.query().unwrap_or_default(), route.map_or(&[], |route| route.parameters))
    }
}

impl Query {
    pub(super) fn parse(text: &str, known: &[&str]) -> Result<Self, Problem> {
        let mut found: Vec<(String, String)> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(name)?, decoded(value)?);
            if !known.contains(&name.as_ref()) {
                return Err(unknown(&name, known));
            }
            if name != "label" && found.iter().any(|(n, _)| *n == name) {
                return Err(Problem::bad_request(
                    "invalid_parameter",
                    format!("`{name}` is there twice; give it once"),
                ));
            }
            if found.len() == PARAMETERS_MAX {
                let detail = format!("more than {PARAMETERS_MAX} parameters in one request");
                return Err(Problem::bad_request("invalid_parameter", detail));
            }
            found.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self(found))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
    /// An id or a name.
    pub(super) fn id<T: FromStr<Err = InvalidId>>(&self, name: &str) -> Result<Option<T>, Problem> {
        let parsed = self.text(name).map(str::parse).transpose();
        parsed.map_err(|error: InvalidId| Problem::bad_request("invalid_parameter", format!("`{name}`: {error}")))
    }
    /// One of `all`.
    pub(super) fn choice<T: Copy>(
        &self,
        name: &str,
        all: &[T],
        word: fn(T) -> &'static str,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match all.iter().find(|choice| word(**choice) == text) {
            Some(choice) => Ok(Some(*choice)),
            None => {
                let words: Vec<_> = all.iter().map(|choice| word(*choice)).collect();
                let detail = format!("there is no {name} `{}`; it is one of {}", shown(text), words.join(", "));
                Err(Problem::bad_request("invalid_parameter", detail))
            }
        }
    }
    pub(super) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.text(name) {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(other) => {
                let detail = format!("`{name}` is `{}`; it is true or false", shown(other));
                Err(Problem::bad_request("invalid_parameter", detail))
            }
        }
    }
    pub(super) fn limit(&self) -> Result<usize, Problem> {
        match self.text("limit") {
            None => Ok(LIMIT_DEFAULT),
            Some(text) => match text.parse::<usize>() {
                Ok(limit) if (1..=LIMIT_MAX).contains(&limit) => Ok(limit),
                Ok(_) | Err(_) => {
                    let detail = format!("`limit` is `{}`; a page has 1 to {LIMIT_MAX} rows", shown(text));
                    Err(Problem::bad_request("invalid_limit", detail))
                }
            },
        }
    }
    pub(super) fn cursor(&self) -> Option<&str> {
        self.text("cursor")
    }
    /// A time such as `30s`.
    pub(super) fn time(&self, name: &str, max: Duration) -> Result<Option<Duration>, Problem> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match crate::config::read_time(text) {
            Some(time) if time <= max => Ok(Some(time)),
            Some(_) | None => {
                let detail =
                    format!("`{name}` is `{}`; it is a time such as 30s, up to {} s", shown(text), max.as_secs());
                Err(Problem::bad_request("invalid_parameter", detail))
            }
        }
    }
    /// `label=key=value`, as often as wanted.
    pub(super) fn labels(&self) -> Result<Labels, Problem> {
        let mut labels = Labels::new();
        for (_, text) in self.0.iter().filter(|(name, _)| name == "label") {
            let (key, value) = text.split_once('=').ok_or_else(|| {
                Problem::bad_request(
                    "invalid_parameter",
                    format!("`label` is `{}`; write label=key=value", shown(text)),
                )
            })?;
            if let Some(other) = labels.insert(key.to_owned(), value.to_owned())
                && other != value
            {
                let detail = format!("no VM has two values of the label `{}`", shown(key));
                return Err(Problem::bad_request("invalid_parameter", detail));
            }
        }
        Ok(labels)
    }
}

fn unknown(name: &str, known: &[&str]) -> Problem {
    let hint = match known {
        [] => "; this call takes none".to_owned(),
        known => format!("; this call takes {}", known.join(", ")),
    };
    Problem::bad_request("unknown_parameter", format!("there is no parameter `{}`{hint}", shown(name)))
}

/// A caller's text as a message may repeat it.
pub(super) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(48).flat_map(char::escape_debug).collect();
    if text.chars().nth(48).is_some() {
        out.push('…');
    }
    out
}

/// `%41+b` to `A b`.
fn decoded(text: &str) -> Result<Cow<'_, str>, Problem> {
    if !text.contains(['%', '+']) {
        return Ok(Cow::Borrowed(text));
    }
    let bad =
        || Problem::bad_request("invalid_parameter", "a percent sign begins an escape of UTF-8 bytes, such as %2F");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(bad);
                let (high, low) = (digit()?, digit()?);
                out.push(u8::try_from(high * 16 + low).expect("two hexadecimal digits"));
            }
            other => out.push(other),
        }
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str, known: &[&str]) -> String {
        Query::parse(text, known).unwrap_err().code.into_owned()
    }

    #[test]
    fn parameters_are_read_and_checked() {
        let query = Query::parse("tenant=acme&label=a%3Db&label=c=d+e&limit=7", &["tenant", "label", "limit"]).unwrap();
        assert_eq!(query.text("tenant"), Some("acme"));
        assert_eq!(query.limit().unwrap(), 7);
        assert_eq!(
            query.labels().unwrap().into_iter().collect::<Vec<_>>(),
            [("a".into(), "b".into()), ("c".into(), "d e".into())]
        );
        assert_eq!(code("tenat=x", &["tenant"]), "unknown_parameter");
        assert_eq!(code("a=1&a=1", &["a"]), "invalid_parameter");
        assert_eq!(code("a=%zz", &["a"]), "invalid_parameter");
        assert_eq!(code("a=%ff", &["a"]), "invalid_parameter");
        for bad in ["0", "1001", "-1", "x", ""] {
            let query = Query::parse(&format!("limit={bad}"), &["limit"]).unwrap();
            assert_eq!(query.limit().unwrap_err().code, "invalid_limit", "{bad}");
        }
        let query = Query::parse("wait=30s&long=99h&flag=maybe", &["wait", "long", "flag"]).unwrap();
        assert_eq!(query.time("wait", Duration::from_secs(60)).unwrap(), Some(Duration::from_secs(30)));
        assert!(query.time("long", Duration::from_secs(60)).is_err());
        assert!(query.flag("flag").is_err());
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_queries_never_panic(text in ".{0,100}") {
            let _ = Query::parse(&text, &["a", "label"]).map(|q| { let _ = q.labels(); let _ = q.limit(); });
        }
    }
}
