//! What is mounted: `META[,META...]:/NAMESPACE[/SUBDIR]`.

use std::fmt;
use std::str::FromStr;

/// The port of a MetaServer that is named without one.
pub const DEFAULT_META_PORT: u16 = 7460;

/// Where a mount's files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Addresses of MetaServers, `HOST:PORT`, at least one.
    pub metas: Vec<String>,
    /// The namespace's name.
    pub namespace: String,
    /// A directory below the namespace's root, without slashes at its ends; empty for the root.
    pub subdir: String,
}

/// Why a source cannot be mounted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No `:/` that parts the servers from the namespace.
    #[error("source '{0}' names no namespace: write META[,META...]:/NAMESPACE[/SUBDIR]")]
    NoNamespace(String),
    /// Nothing before `:/`, or an empty item between commas.
    #[error("source '{0}' has an empty MetaServer address: write META[,META...]:/NAMESPACE[/SUBDIR]")]
    EmptyAddress(String),
    /// An address that is neither HOST, HOST:PORT nor [IPV6]:PORT.
    #[error("MetaServer address '{address}': {reason}; write HOST, HOST:PORT, [IPV6] or [IPV6]:PORT")]
    Address {
        /// As given.
        address: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A `.` or `..` in the directory.
    #[error("subdirectory '{0}' must not contain '.' or '..'")]
    Dots(String),
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let (servers, path) =
            text.split_once(":/").ok_or_else(|| SourceError::NoNamespace(text.to_owned()))?;
        let mut metas = Vec::new();
        for item in servers.split(',') {
            if item.is_empty() {
                return Err(SourceError::EmptyAddress(text.to_owned()));
            }
            metas.push(address(item)?);
        }
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        let namespace = parts.next().ok_or_else(|| SourceError::NoNamespace(text.to_owned()))?.to_owned();
        let subdir: Vec<&str> = parts.collect();
        if namespace == "." || namespace == ".." || subdir.iter().any(|&part| part == "." || part == "..") {
            return Err(SourceError::Dots(path.to_owned()));
        }
        Ok(Source { metas, namespace, subdir: subdir.join("/") })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:/{}", self.metas.join(","), self.namespace)?;
        if !self.subdir.is_empty() {
            write!(f, "/{}", self.subdir)?;
        }
        Ok(())
    }
}

/// Checks one address and gives it the default port if it has none.
fn address(item: &str) -> Result<String, SourceError> {
    let wrong = |reason| SourceError::Address { address: item.to_owned(), reason };
    let (host, port) = if let Some(rest) = item.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or_else(|| wrong("the ']' is missing"))?;
        if inside.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(wrong("not an IPv6 address between '[' and ']'"));
        }
        let port = match after {
            "" => None,
            _ => Some(after.strip_prefix(':').ok_or_else(|| wrong("after ']' only ':PORT' may follow"))?),
        };
        (format!("[{inside}]"), port)
    } else {
        match item.split_once(':') {
            None => (item.to_owned(), None),
            Some((_, rest)) if rest.contains(':') => return Err(wrong("an IPv6 address needs '[' and ']'")),
            Some((host, port)) => (host.to_owned(), Some(port)),
        }
    };
    if !item.starts_with('[') && host.contains(|c: char| c.is_whitespace() || "/[]".contains(c)) {
        return Err(wrong("not a host name"));
    }
    if host.is_empty() {
        return Err(wrong("the host is missing"));
    }
    let port = match port {
        None => DEFAULT_META_PORT,
        Some(port) => match port.parse::<u16>() {
            Ok(0) | Err(_) => return Err(wrong("the port must be 1 to 65535")),
            Ok(port) => port,
        },
    };
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_all_shapes_are_understood() {
        let parse = |text: &str| text.parse::<Source>().unwrap();
        assert_eq!(
            parse("m1:/ns"),
            Source { metas: vec!["m1:7460".into()], namespace: "ns".into(), subdir: String::new() }
        );
        let all = parse("m1,10.0.0.2:99,[::1],[fe80::1]:7:/demo//a/b/");
        assert_eq!(all.metas, ["m1:7460", "10.0.0.2:99", "[::1]:7460", "[fe80::1]:7"]);
        assert_eq!((all.namespace.as_str(), all.subdir.as_str()), ("demo", "a/b"));
        assert_eq!(all.to_string(), "m1:7460,10.0.0.2:99,[::1]:7460,[fe80::1]:7:/demo/a/b");
    }

    #[test]
    fn wrong_sources_are_refused_with_what_to_write() {
        for (text, part) in [
            ("m1", "names no namespace"),
            ("m1:ns", "names no namespace"),
            ("m1:/", "names no namespace"),
            (":/ns", "empty MetaServer address"),
            ("m1,,m2:/ns", "empty MetaServer address"),
            ("m1:x:/ns", "port must be"),
            ("m1:70000:/ns", "port must be"),
            ("m1:0:/ns", "port must be"),
            ("::1:/ns", "needs '['"),
            ("[::1:/ns", "']' is missing"),
            ("[nonsense]:1:/ns", "not an IPv6"),
            ("[::1]7:/ns", "only ':PORT'"),
            ("m1:/ns/../x", "'.' or '..'"),
        ] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
