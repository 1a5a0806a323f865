//! Where manifests come from: files, folders, standard input.

use std::{
    collections::BTreeSet,
    io::Read as _,
    path::{Path, PathBuf},
};

use crate::yaml::LARGEST_FILE;

/// A file with what is in it.
pub struct Source {
    /// File as it was named; `-` is standard input.
    pub name: String,
    /// Contents.
    pub bytes: Vec<u8>,
}

/// A file or folder that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The file system or the terminal says no.
    #[error("{name} cannot be read: {error}")]
    Unreadable {
        /// As it was named.
        name: String,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// A folder without manifests.
    #[error("{0} holds no .yaml, .yml or .json file")]
    Empty(String),
}

/// Reads everything that is named: files, folders with all below them, and `-` for standard input.
///
/// # Errors
/// When one of them cannot be read.
pub fn read(names: &[PathBuf]) -> Result<Vec<Source>, InputError> {
    let (mut sources, mut known) = (Vec::new(), BTreeSet::new());
    // A file that is named twice, or by itself and with its folder, is one file.
    let mut is_new = |file: &Path| file.canonicalize().map_or(true, |whole| known.insert(whole));
    for name in names {
        let shown = name.display().to_string();
        let failed = |error| InputError::Unreadable { name: shown.clone(), error };
        if shown == "-" {
            let mut bytes = Vec::new();
            std::io::stdin().lock().take(LARGEST_FILE as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
            sources.push(Source { name: shown, bytes });
        } else if name.is_dir() {
            let files = files_below(name).map_err(failed)?;
            if files.is_empty() {
                return Err(InputError::Empty(shown));
            }
            for file in files.iter().filter(|file| is_new(file)) {
                sources.push(read_file(file)?);
            }
        } else if is_new(name) {
            sources.push(read_file(name)?);
        }
    }
    Ok(sources)
}

fn read_file(file: &Path) -> Result<Source, InputError> {
    let name = file.display().to_string();
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(LARGEST_FILE as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| InputError::Unreadable { name: name.clone(), error })?;
    Ok(Source { name, bytes })
}

fn files_below(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            // What a link leads to is not followed: it may lead in circles.
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
            {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
