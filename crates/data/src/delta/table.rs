//! A version of a table: what its log comes to.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type};
use arrow_array::{Array, StructArray};
use delta_kernel::actions::deletion_vector::DeletionVectorDescriptor;
use delta_kernel::engine::arrow_data::ArrowEngineData;
use delta_kernel::error::KernelError;
use delta_kernel::object_store::local::LocalFileSystem;
use delta_kernel::scan::state::ScanFile;
use delta_kernel::scan::{Scan, ScanMetadata};
use delta_kernel::schema::SchemaRef;
use delta_kernel::{Engine, KernelResult, Snapshot};
use delta_kernel_default_engine::DefaultEngineBuilder;
use sha2::Digest;
use tessera_files::{Sha256, sha256_hex};
use url::Url;

use super::TableProblem;
use crate::error::DataError;
use crate::source::{Compression, DataFile, Format, guarded};

/// A table's folder, as the log's reader sees it, whatever it is called on this machine: its name need not go through urls.
const ROOT: &str = "file:///";
/// A folder from which it shows whether a name leads out of it.
const FOLDER: &str = "file:///table/";

/// A version of a table, of which some columns are to be read.
pub(crate) struct Table {
    name: String,
    folder: PathBuf,
    version: u64,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) scan: Scan,
    pub(super) root: Url,
    /// In the order of their paths.
    pub(super) files: Vec<TableFile>,
    identity: String,
}

/// A data file of a version.
pub(super) struct TableFile {
    /// Its path below the table's folder.
    name: String,
    /// What turns its rows into those of the table.
    pub(super) scan: ScanFile,
    /// Which of its rows are deleted.
    pub(super) deleted: Option<DeletionVectorDescriptor>,
}

impl Table {
    /// Reads the log of the table in `folder`, which messages call `name`. Of its columns those that are `wanted` are read, or all.
    pub(crate) fn open(
        name: &str,
        folder: &Path,
        version: u64,
        wanted: Option<&[&str]>,
    ) -> Result<Self, DataError> {
        let refused = |problem: TableProblem| problem.of(name);
        let failed = |error: KernelError| refused(problem(error, version));
        let damaged = |said: &str| refused(TableProblem::Log { version, said: said.to_owned() });
        let root = Url::parse(ROOT).map_err(|_| refused(TableProblem::NoTable))?;
        let store = LocalFileSystem::new_with_prefix(folder).map_err(|_| refused(TableProblem::NoTable))?;
        let engine: Arc<dyn Engine> = Arc::new(DefaultEngineBuilder::new(Arc::new(store)).build());
        let opened = guarded(|| {
            let snapshot = Snapshot::builder_for(root.as_str()).at_version(version).build(engine.as_ref())?;
            let schema = match columns(&snapshot.schema(), wanted) {
                Ok(schema) => schema,
                Err(problem) => return Ok(Err(problem)),
            };
            let identity = identity(&snapshot);
            let scan = snapshot.scan_builder().with_schema(schema).build()?;
            let mut files = Vec::new();
            for metadata in scan.scan_metadata(engine.as_ref())? {
                if let Err(problem) = collect(metadata?, &mut files)? {
                    return Ok(Err(problem));
                }
            }
            Ok(Ok((scan, files, identity)))
        });
        let (scan, mut files, identity) =
            opened.map_err(|said| damaged(&said))?.map_err(failed)?.map_err(refused)?;
        files.sort_by(|one, other| Path::new(&one.name).cmp(Path::new(&other.name)));
        let folder = folder.to_owned();
        Ok(Self { name: name.to_owned(), folder, version, engine, scan, root, files, identity })
    }

    /// The files that make up the version, below the table's folder: data, and what says which of its rows are deleted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.files.iter().map(|file| file.name.clone()).collect();
        // Outside of the folder there is none: that was refused.
        names.extend(self.files.iter().filter_map(|file| vector_name(file.deleted.as_ref()?).ok().flatten()));
        names.sort();
        // One file may have the deletions of several.
        names.dedup();
        names
    }

    /// The data files, which must be there as the log tells of them.
    pub(crate) fn data_files(&self) -> Result<Vec<DataFile>, DataError> {
        for name in self.names() {
            if !self.folder.join(&name).is_file() {
                return Err(self.missing(name));
            }
        }
        let files = self.files.iter().enumerate();
        files.map(|(index, file)| self.data_file(index, file)).collect()
    }

    fn data_file(&self, index: usize, file: &TableFile) -> Result<DataFile, DataError> {
        let path = self.folder.join(&file.name);
        let expected = u64::try_from(file.scan.size).unwrap_or_default();
        let found = fs::metadata(&path).map_or(0, |found| found.len());
        if found != expected {
            let file = file.name.clone();
            return Err(TableProblem::FileSize { file, found, expected }.of(&self.name));
        }
        let format = Format::Table { file: index, constants: constants(file) };
        Ok(DataFile { path, format, compression: Compression::None, size: found })
    }

    fn missing(&self, file: String) -> DataError {
        let version = self.version;
        let newest = super::version_here(&self.name, &self.folder, None).unwrap_or(version);
        TableProblem::missing(version, newest, file).of(&self.name)
    }

    /// What tells this table, and what its columns mean in this version, from others.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }
}

/// The columns that are read of a table's.
fn columns(schema: &SchemaRef, wanted: Option<&[&str]>) -> Result<SchemaRef, TableProblem> {
    let Some(wanted) = wanted else { return Ok(schema.clone()) };
    let there: Vec<_> = wanted.iter().filter(|name| schema.field(name).is_some()).collect();
    if there.is_empty() {
        let found: Vec<_> = schema.fields().map(|field| field.name().as_str()).collect();
        return Err(TableProblem::NoColumns { wanted: wanted.join(", "), found: found.join(", ") });
    }
    schema.project(&there).map_err(|error| TableProblem::Unsupported(said(&error)))
}

fn identity(snapshot: &Snapshot) -> String {
    // Within it there are maps without an order.
    let mut schema = serde_json::to_value(snapshot.schema()).unwrap_or_default();
    schema.sort_all_objects();
    let id = snapshot.table_configuration().metadata().id();
    sha256_hex(Sha256::new_with_prefix(format!("{id}\n{schema}")))
}

/// Adds the files that a part of the log tells of.
fn collect(metadata: ScanMetadata, files: &mut Vec<TableFile>) -> KernelResult<Result<(), TableProblem>> {
    let scans = metadata.visit_scan_files(Vec::new(), |files, file| files.push(file))?;
    let deleted = deletions(&metadata)?;
    if scans.len() != deleted.len() {
        return Err(KernelError::generic("files and deletions do not match"));
    }
    for (scan, deleted) in scans.into_iter().zip(deleted) {
        let place = Url::parse(FOLDER).and_then(|root| root.join(&scan.path));
        let Some(name) = place.ok().and_then(|place| below_root(&place)) else {
            return Ok(Err(TableProblem::Outside { file: scan.path }));
        };
        if let Some(Err(problem)) = deleted.as_ref().map(vector_name) {
            return Ok(Err(problem));
        }
        files.push(TableFile { name, scan, deleted });
    }
    Ok(Ok(()))
}

/// The path of a place in [`FOLDER`]; `None`: it is outside.
fn below_root(place: &Url) -> Option<String> {
    if place.query().is_some() || place.fragment().is_some() {
        return None;
    }
    // This decodes it, and an encoded slash may stand before a `..`.
    let path = place.to_file_path().ok()?;
    let path = path.strip_prefix(Url::parse(FOLDER).ok()?.to_file_path().ok()?).ok()?;
    let stays = path.components().all(|part| matches!(part, Component::Normal(_)));
    path.to_str().filter(|_| stays).map(str::to_owned)
}

/// The file that says which rows are deleted; `None`: the log does.
fn vector_name(vector: &DeletionVectorDescriptor) -> Result<Option<String>, TableProblem> {
    let outside = || TableProblem::Outside { file: vector.path_or_inline_dv.clone() };
    let root = Url::parse(FOLDER).map_err(|_| outside())?;
    let place = vector.absolute_path(&root).map_err(|_| outside())?;
    place.map(|place| below_root(&place).ok_or_else(outside)).transpose()
}

/// What the log says of deleted rows, for each file that is visited. The kernel keeps it to itself in what it hands out of a
/// file, but which file it names must be known before it can be brought here.
fn deletions(metadata: &ScanMetadata) -> KernelResult<Vec<Option<DeletionVectorDescriptor>>> {
    let missing = || KernelError::generic("a part of the log has no column for deletions");
    let data = metadata.scan_files.data().any_ref().downcast_ref::<ArrowEngineData>().ok_or_else(missing)?;
    let batch = data.record_batch();
    let (Some(paths), Some(vectors)) = (batch.column_by_name("path"), batch.column_by_name("deletionVector"))
    else {
        return Err(missing());
    };
    let vectors = vectors.as_struct_opt().ok_or_else(missing)?;
    let selected = metadata.scan_files.selection_vector();
    let visited = |&row: &usize| selected.get(row).copied().unwrap_or(true) && paths.is_valid(row);
    let rows = (0..batch.num_rows()).filter(visited);
    rows.map(|row| descriptor(vectors, row).ok_or_else(missing)?.transpose()).collect()
}

/// One of them; `None`: the columns are others.
fn descriptor(vectors: &StructArray, row: usize) -> Option<Option<KernelResult<DeletionVectorDescriptor>>> {
    let kind = vectors.column_by_name("storageType")?.as_string_opt::<i32>()?;
    if vectors.is_null(row) || kind.is_null(row) {
        return Some(None);
    }
    let path = vectors.column_by_name("pathOrInlineDv")?.as_string_opt::<i32>()?;
    let offset = vectors.column_by_name("offset")?.as_primitive_opt::<Int32Type>()?;
    let size = vectors.column_by_name("sizeInBytes")?.as_primitive_opt::<Int32Type>()?;
    let cardinality = vectors.column_by_name("cardinality")?.as_primitive_opt::<Int64Type>()?;
    let offset = offset.is_valid(row).then(|| offset.value(row));
    let (path, size, cardinality) = (path.value(row), size.value(row), cardinality.value(row));
    let kind = kind.value(row).parse();
    Some(Some(kind.and_then(|kind| DeletionVectorDescriptor::try_new(kind, path, offset, size, cardinality))))
}

/// What the log says of a file that its bytes do not: it tells equal files with other rows apart.
fn constants(file: &TableFile) -> String {
    let mut values: Vec<_> = file.scan.partition_values.iter().collect();
    values.sort();
    let deleted = file
        .deleted
        .as_ref()
        .map(|vector| (&vector.path_or_inline_dv, vector.offset, vector.size_in_bytes, vector.cardinality));
    format!("{values:?} {deleted:?}")
}

/// What a refusal of the kernel means.
fn problem(error: KernelError, version: u64) -> TableProblem {
    match error {
        KernelError::Backtraced { source, .. } => problem(*source, version),
        KernelError::Unsupported(said)
        | KernelError::InvalidColumnMappingMode(said)
        | KernelError::MaxCatalogVersion(said) => TableProblem::Unsupported(said),
        error => TableProblem::Log { version, said: said(&error) },
    }
}

/// The first line of what the kernel says: a trace of calls may follow.
pub(super) fn said(error: &KernelError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
