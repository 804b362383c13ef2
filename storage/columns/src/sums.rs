//! Checksums of data files, taken as they are written.
//!
//! Lance's files carry none. The store that Lance writes through passes everything on and computes the checksum of each
//! data file on its way; the writer puts it into the file's sidecar.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

/// The checksums of data files whose writing has ended, until somebody takes them.
pub(crate) type Sums = Arc<Mutex<HashMap<Path, u128>>>;

/// A store that computes the checksum of every data file that goes through it.
#[derive(Debug)]
pub(crate) struct Summing {
    inner: Arc<dyn ObjectStore>,
    sums: Sums,
}

impl Summing {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, sums: Sums) -> Self {
        Self { inner, sums }
    }
}

fn is_data(path: &Path) -> bool {
    path.filename().is_some_and(|name| name.ends_with(".lance"))
}

impl fmt::Display for Summing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Summing {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let sum = is_data(location).then(|| {
            let mut hasher = Xxh3::new();
            payload.iter().for_each(|part| hasher.update(part));
            hasher.digest128()
        });
        let put = self.inner.put_opts(location, payload, options).await?;
        if let Some(sum) = sum {
            self.sums.lock().insert(location.clone(), sum);
        }
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, options).await?;
        if !is_data(location) {
            return Ok(inner);
        }
        Ok(Box::new(Upload { inner, hasher: Xxh3::new(), location: location.clone(), sums: Arc::clone(&self.sums) }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A data file on its way, in parts. Parts are handed over in the order of the file.
struct Upload {
    inner: Box<dyn MultipartUpload>,
    hasher: Xxh3,
    location: Path,
    sums: Sums,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upload({})", self.location)
    }
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        data.iter().for_each(|part| self.hasher.update(part));
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let put = self.inner.complete().await?;
        self.sums.lock().insert(self.location.clone(), self.hasher.digest128());
        Ok(put)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
