//! What can keep a volume's files from being read, told so that the user can repair it.

use tessera_files::FileError;

/// A volume's files could not be had.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// The path is on a workspace, but in no volume.
    #[error(
        "{path} is in no volume of Unity Catalog: such paths are dbfs:/Volumes/<catalog>/<schema>/<volume>/…; copy the data \
         into a volume, or to this machine"
    )]
    NoVolume {
        /// The path.
        path: String,
    },

    /// Who is asking is not said.
    #[error(
        "{why}; {variable} is not set: DATABRICKS_HOST and DATABRICKS_TOKEN tell where the workspace is and who asks"
    )]
    NoCredentials {
        /// What the workspace is needed for.
        why: String,
        /// The variable that is not set.
        variable: &'static str,
    },

    /// The workspace's address is none.
    #[error(
        "DATABRICKS_HOST is {found}, expected the address of a workspace, such as https://adb-123.azuredatabricks.net"
    )]
    Address {
        /// What it says, as far as it may be shown.
        found: String,
    },

    /// The client could not be made.
    #[error("cannot start the client of the workspace: {0}")]
    Start(#[source] std::io::Error),

    /// Nobody answers, or not as a workspace does.
    #[error(
        "the workspace {place} cannot be reached for {path}: {reason}; what was fetched is kept, try again"
    )]
    Unreachable {
        /// Its address.
        place: String,
        /// What was asked for.
        path: String,
        /// What happened.
        reason: String,
    },

    /// The token is not taken.
    #[error(
        "the workspace {place} does not take DATABRICKS_TOKEN (401), which is wrong or has expired; make another"
    )]
    Expired {
        /// Its address.
        place: String,
    },

    /// The token is taken, but may not do this.
    #[error(
        "the workspace {place} does not let the owner of DATABRICKS_TOKEN read {path} (403): {message}. It takes READ VOLUME on \
         the volume, USE CATALOG and USE SCHEMA on what it is in"
    )]
    NotAllowed {
        /// Its address.
        place: String,
        /// What was asked for.
        path: String,
        /// What the workspace said.
        message: String,
    },

    /// There is no such file or folder.
    #[error("the workspace {place} has no {path}; look at the path in Catalog Explorer")]
    NotFound {
        /// Its address.
        place: String,
        /// What was asked for.
        path: String,
    },

    /// There is no such table.
    #[error("could not find table {name} on the workspace {place}; look at its name in Catalog Explorer")]
    NoTable {
        /// Its address.
        place: String,
        /// What was asked for.
        name: String,
    },

    /// The token is taken, but may not read the table.
    #[error(
        "the owner of DATABRICKS_TOKEN does not have permission to access table {name} on the workspace {place} from outside \
         (403): {message}. It takes SELECT on the table, USE CATALOG and USE SCHEMA on what it is in, EXTERNAL USE SCHEMA, which the \
         catalogue's owner grants, and external data access switched on for the metastore"
    )]
    TableNotAllowed {
        /// Its address.
        place: String,
        /// What was asked for.
        name: String,
        /// What the workspace said.
        message: String,
    },

    /// What came is no answer of a catalogue.
    #[error(
        "{place} answers about table {name} with what no catalogue says (line {line}, column {column}); check DATABRICKS_HOST, which must \
         be the address of a workspace"
    )]
    NoCatalog {
        /// Its address.
        place: String,
        /// What was asked for.
        name: String,
        /// Where the answer goes wrong.
        line: usize,
        /// And in this line.
        column: usize,
    },

    /// It is no table whose files are a Delta table.
    #[error(
        "{name} is {found}, no Delta table of its own, and cannot be read; write its rows into one (CREATE TABLE … AS SELECT), and \
         name that"
    )]
    NoDeltaTable {
        /// What was asked for.
        name: String,
        /// What it is.
        found: String,
    },

    /// Credentials came, but of no kind that serves.
    #[error(
        "the workspace grants no credentials that are known here for {name} ({kinds}); copy the table to this machine or to a store, \
         and name it as delta:<path or url>"
    )]
    NoKnownAccess {
        /// What was asked for.
        name: String,
        /// The kinds that it granted.
        kinds: String,
    },

    /// Something else is refused.
    #[error("the workspace {place} refuses {path} ({status}): {message}")]
    Rejected {
        /// Its address.
        place: String,
        /// What was asked for.
        path: String,
        /// The status of the answer.
        status: u16,
        /// What the workspace said.
        message: String,
    },

    /// Nothing that was wanted is there.
    #[error("{path} on the workspace {place} has no file of a kind that is read")]
    NothingWanted {
        /// Its address.
        place: String,
        /// What was asked for.
        path: String,
    },

    /// The files are no longer those that were asked for.
    #[error(
        "{path} on the workspace {place} has changed: it is no longer version {expected}, with which the run began; restore the \
         files, or start a new run (another run_name)"
    )]
    Changed {
        /// Its address.
        place: String,
        /// What was asked for.
        path: String,
        /// The version that was asked for.
        expected: String,
    },

    /// A file changed while it was being read.
    #[error("{path} on the workspace {place} changes while it is read; try again when nobody writes it")]
    Unsteady {
        /// Its address.
        place: String,
        /// What was asked for.
        path: String,
    },

    /// A file could not be written or read here.
    #[error(transparent)]
    File(#[from] FileError),
}
