//! What a store's refusal means.
//!
//! Stores say it in a status and a code within a text; `object_store` passes both on as text, which may also hold the
//! address asked for, with a signature in it. Only the code and its message are taken from it.

use std::error::Error as _;

use object_store::Error;

use crate::address::Scheme;
use crate::error::Problem;

/// Characters of a message that are shown.
const SHOWN: usize = 300;
/// What says that credentials were good once.
const EXPIRED: [&str; 6] = [
    "ExpiredToken",
    "TokenRefreshRequired",
    "Token has expired",
    "RequestExpired",
    "invalid_grant",
    // Azure's, whose code is that of wrong ones.
    "Signature not valid in the specified time frame",
];
const BAD: [&str; 6] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "AuthenticationFailed",
    "InvalidAuthenticationInfo",
    "InvalidClientTokenId",
];
const NO_BUCKET: [&str; 4] = [
    "NoSuchBucket",
    "ContainerNotFound",
    "The specified bucket does not exist",
    "does not have storage account",
];
/// What says that they are good, but not for this. A listing that is refused has no kind of error of its own.
const FORBIDDEN: [&str; 4] =
    ["AccessDenied", "AuthorizationFailure", "AuthorizationPermissionMismatch", "403 Forbidden"];
/// Where credentials are looked for when none are given: reached for in vain where there are none.
const METADATA: [&str; 4] =
    ["169.254.", "metadata.google.internal", "/latest/api/token", "identity/oauth2/token"];

/// The environment variables that credentials come from.
pub(crate) fn variables(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::S3 => {
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, with AWS_SESSION_TOKEN where they are temporary"
        }
        Scheme::Google => "GOOGLE_APPLICATION_CREDENTIALS (a file) or GOOGLE_SERVICE_ACCOUNT_KEY",
        Scheme::Azure => {
            "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, or AZURE_CLIENT_ID, \
             AZURE_TENANT_ID and AZURE_CLIENT_SECRET"
        }
        Scheme::Http => "nothing: servers are asked without credentials",
    }
}

/// Sorts what went wrong.
pub(crate) fn problem(error: &Error, scheme: Scheme) -> Problem {
    let text = whole_text(error);
    let says = |known: &[&str]| known.iter().any(|known| text.contains(known));
    let detail = detail(&text);
    let variables = variables(scheme);
    if says(&EXPIRED) {
        return Problem::Expired(detail);
    }
    if says(&BAD) {
        return Problem::BadCredentials { detail, variables };
    }
    if says(&NO_BUCKET) {
        return Problem::NoBucket(detail);
    }
    if says(&METADATA) {
        return Problem::NoCredentials {
            detail: "and no machine that has any was found".to_owned(),
            variables,
        };
    }
    if says(&FORBIDDEN) {
        return Problem::Forbidden(detail);
    }
    match error {
        Error::NotFound { .. } => Problem::NotFound,
        Error::Precondition { .. } => Problem::Changed,
        Error::PermissionDenied { .. } => Problem::Forbidden(detail),
        Error::Unauthenticated { .. } => Problem::BadCredentials { detail, variables },
        // The url's own path has been understood, so it is that of something below.
        Error::InvalidPath { .. } => Problem::ObjectName(detail),
        _ => Problem::Unreachable(detail),
    }
}

/// The texts of an error and its causes.
fn whole_text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push('\n');
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// What a person should read of it: the store's code and message, else the innermost cause.
fn detail(text: &str) -> String {
    let tag = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once("</")?.0.trim().to_owned())
    };
    let said = match (tag("Code"), tag("Message")) {
        (Some(code), Some(message)) => format!("{code}: {}", message.lines().next().unwrap_or_default()),
        (Some(code), None) => code,
        _ => {
            let innermost = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            innermost.split_whitespace().map(without_query).collect::<Vec<_>>().join(" ")
        }
    };
    said.chars().take(SHOWN).collect()
}

/// A word without what an address has behind its `?`.
fn without_query(word: &str) -> &str {
    match word.split_once('?') {
        Some((address, _)) if address.contains('/') => address,
        _ => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Problem {
        problem(&Error::Generic { store: "S3", source: text.to_owned().into() }, Scheme::S3)
    }

    #[test]
    fn refusals_are_told_apart_by_their_codes() {
        let body = |code: &str| format!("403: <Error><Code>{code}</Code><Message>No.</Message></Error>");
        assert!(
            matches!(refused(&body("ExpiredToken")), Problem::Expired(said) if said == "ExpiredToken: No.")
        );
        let late = "<AuthenticationErrorDetail>Signature not valid in the specified time frame: Start [a] - Expiry [b]</AuthenticationErrorDetail>";
        let said = refused(&format!("{}{late}", body("AuthenticationFailed"))).to_string();
        assert!(
            said.contains("have expired (AuthenticationFailed: No.); run the same command again"),
            "{said}"
        );
        assert!(matches!(refused(&body("InvalidAccessKeyId")), Problem::BadCredentials { .. }));
        assert!(matches!(refused(&body("AccessDenied")), Problem::Forbidden(_)));
        assert!(matches!(refused(&body("NoSuchBucket")), Problem::NoBucket(_)));
        assert!(matches!(refused("GET http://169.254.169.254/latest"), Problem::NoCredentials { .. }));
        assert!(matches!(refused("connection refused"), Problem::Unreachable(_)));
    }

    #[test]
    fn signatures_are_not_shown() {
        let said = refused("failed at https://host/path?sig=secret&x=1 at last").to_string();
        assert!(said.contains("https://host/path at last") && !said.contains("secret"), "{said}");
    }
}
