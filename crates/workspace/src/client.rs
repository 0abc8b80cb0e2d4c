//! Requests to a workspace, tried again where that may help.

use std::error::Error;
use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::{Client as Http, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use tokio::runtime::{Builder, Runtime};

use crate::address::Workspace;
use crate::error::WorkspaceError;

/// How long a connection is waited for.
const CONNECTING: Duration = Duration::from_secs(10);
/// How long one stands still before it is given up.
const STANDING: Duration = Duration::from_secs(60);
/// How often in a row something is tried that does not come on.
const TRIES: u32 = 6;
/// The longest pause that a workspace may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A client of one workspace. Calls block: it belongs to a thread that has nothing else to do.
pub(crate) struct Client {
    pub(crate) workspace: Workspace,
    http: Http,
    runtime: Runtime,
}

/// An attempt that came to nothing.
pub(crate) enum Failure {
    /// It may go better later, after so long if the workspace says.
    Passing { reason: String, after: Option<Duration> },
    /// It will not.
    Lasting(WorkspaceError),
}

impl Client {
    pub(crate) fn new(workspace: Workspace) -> Result<Self, WorkspaceError> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(WorkspaceError::Start)?;
        let http = Http::builder().connect_timeout(CONNECTING).read_timeout(STANDING).build();
        let http = http.map_err(|error| WorkspaceError::Start(std::io::Error::other(error)))?;
        Ok(Self { workspace, http, runtime })
    }

    pub(crate) fn get(&self, url: &str) -> RequestBuilder {
        self.workspace.sign(self.http.get(url))
    }

    pub(crate) fn post(&self, url: &str) -> RequestBuilder {
        self.workspace.sign(self.http.post(url))
    }

    pub(crate) fn head(&self, url: &str) -> RequestBuilder {
        self.workspace.sign(self.http.head(url))
    }

    /// What `attempt` comes to, which is tried again with growing pauses as long as it fails for a passing reason. It says by
    /// its argument when something came of it nevertheless: then it has all its tries again.
    pub(crate) fn patiently<T>(
        &self,
        path: &str,
        mut attempt: impl AsyncFnMut(&mut bool) -> Result<T, Failure>,
    ) -> Result<T, WorkspaceError> {
        let (mut tries, mut pause) = (1, self.workspace.pause);
        loop {
            let mut came_on = false;
            let (reason, after) = match self.runtime.block_on(attempt(&mut came_on)) {
                Ok(value) => return Ok(value),
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing { reason, after }) => (reason, after),
            };
            if came_on {
                (tries, pause) = (1, self.workspace.pause);
            } else if tries == TRIES {
                let (place, path) = (self.workspace.place(), path.to_owned());
                return Err(WorkspaceError::Unreachable { place, path, reason });
            }
            std::thread::sleep(after.unwrap_or(pause).min(LONGEST_PAUSE));
            (tries, pause) = (tries + 1, pause * 2);
        }
    }

    /// Sends a request about `path`, and judges the status of the answer.
    pub(crate) async fn send(&self, path: &str, request: RequestBuilder) -> Result<Response, Failure> {
        let answer = request.send().await.map_err(|error| self.broken(&error))?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(answer);
        }
        let after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let passing = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
        if passing || status.is_server_error() {
            let (reason, after) = (format!("it answers {status}"), after.map(Duration::from_secs));
            return Err(Failure::Passing { reason, after });
        }
        let text = answer.text().await.unwrap_or_default();
        let message = serde_json::from_str(&text).map_or(text, |Complaint { message }| message);
        let (place, path) = (self.workspace.place(), path.to_owned());
        let message = self.workspace.clean(&message);
        Err(Failure::Lasting(match status {
            StatusCode::UNAUTHORIZED => WorkspaceError::Expired { place },
            StatusCode::FORBIDDEN => WorkspaceError::NotAllowed { place, path, message },
            StatusCode::NOT_FOUND => WorkspaceError::NotFound { place, path },
            _ => WorkspaceError::Rejected { place, path, status: status.as_u16(), message },
        }))
    }

    /// A connection that broke, or was never made.
    pub(crate) fn broken(&self, error: &reqwest::Error) -> Failure {
        // The outer causes repeat the address.
        let mut cause: &dyn Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        Failure::Passing { reason: self.workspace.clean(&cause.to_string()), after: None }
    }
}

/// What a workspace says of a request that it refuses.
#[derive(Deserialize)]
struct Complaint {
    message: String,
}
