//! Results on their way out: batches become Flight messages, in pieces that every client accepts.
//!
//! A small result that is complete within a moment is encoded on the spot. Every other result has a task of its own, which polls
//! the plan, cuts and encodes, and hands messages over a short channel to gRPC. When the client reads slowly the channel fills and
//! the plan waits; when the client goes away the channel closes, the task is aborted and the plan is dropped with it. The first
//! batch leaves as it is; later small batches are gathered as long as the plan has more of them ready, so that nobody waits for a
//! batch to fill.
//!
//! # Invariants
//! - ENCODE-1 every batch has exactly the schema that was announced. Test: `a_batch_must_fit_the_announced_schema`.
//! - ENCODE-2 no message is larger than the limit unless a single row is. Test: `large_batches_are_cut_by_size`.
//! - ENCODE-3 dropping the result stops the plan. Test: `dropping_the_result_stops_the_plan`.
//! - ENCODE-4 a stream that ends early ends with an error, also after a panic. Test: `a_panic_is_an_error`.
//! - ENCODE-5 order is kept and no row is lost or doubled. Test: `small_batches_are_gathered_in_order`.
//! - ENCODE-6 what leaves without a task is bounded, and a plan is waited for there for [`SMALL_WAIT`] at most.
//!   Test: `small_results_need_no_task`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow::array::{Array, RecordBatch, RecordBatchOptions};
use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::{FlightData, IpcMessage, SchemaAsIpc};
use arrow_ipc::writer::{CompressionContext, DictionaryTracker, IpcDataGenerator, IpcWriteOptions};
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::Status;

use crate::error::{Error, Result};
use crate::metrics::Counters;

/// Messages encoded ahead of the client.
const MESSAGES_AHEAD: usize = 3;
/// Largest result that is encoded without a task of its own, in bytes of Arrow data.
const SMALL_BYTES: usize = 64 << 10;
/// How long such a result may take. Longer ones are worth a task, and their client wants the schema meanwhile.
const SMALL_WAIT: Duration = Duration::from_millis(2);
/// Most batches of such a result: a plan that gives many small ones deserves its task.
const SMALL_BATCHES: usize = 8;

/// How results are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Largest message, in bytes of Arrow data.
    pub(crate) bytes_max: usize,
    /// Batches smaller than this are gathered while more are ready.
    pub(crate) bytes_min: usize,
}

impl Default for Shape {
    fn default() -> Self {
        // Go's client accepts 16 MiB, grpc's default elsewhere is 4 MiB; messages carry some framing on top.
        Self { bytes_max: 3 << 20, bytes_min: 512 << 10 }
    }
}

/// A schema as `FlightInfo`, `SchemaResult` and prepared statements carry it: an encapsulated IPC message.
pub(crate) fn schema_bytes(schema: &Schema) -> Result<Bytes> {
    let options = IpcWriteOptions::default();
    let IpcMessage(bytes) = IpcMessage::try_from(SchemaAsIpc::new(schema, &options))?;
    Ok(bytes)
}

/// A schema as the first message of a stream carries it.
pub(crate) fn schema_header(schema: &Schema) -> Bytes {
    FlightData::from(SchemaAsIpc::new(schema, &IpcWriteOptions::default())).data_header
}

/// Makes messages of batches.
struct Encoder {
    options: IpcWriteOptions,
    generator: IpcDataGenerator,
    dictionaries: DictionaryTracker,
    compression: CompressionContext,
}

impl Encoder {
    fn new() -> Encoder {
        Encoder {
            options: IpcWriteOptions::default(),
            generator: IpcDataGenerator::default(),
            dictionaries: DictionaryTracker::new(false),
            compression: CompressionContext::default(),
        }
    }

    fn batch_messages(&mut self, batch: &RecordBatch) -> Result<Vec<FlightData>> {
        let (dictionaries, data) =
            self.generator.encode(batch, &mut self.dictionaries, &self.options, &mut self.compression)?;
        Ok(dictionaries.into_iter().chain([data]).map(FlightData::from).collect())
    }
}

fn header_message(header: Bytes) -> FlightData {
    FlightData { data_header: header, ..Default::default() }
}

/// A batch as messages, its schema first.
pub(crate) fn whole(batch: &RecordBatch) -> Result<Vec<FlightData>> {
    let mut encoder = Encoder::new();
    let mut messages = vec![header_message(schema_header(&batch.schema()))];
    messages.extend(encoder.batch_messages(batch)?);
    Ok(messages)
}

/// Bytes that the rows of a batch need, whatever larger buffers they are slices of.
fn sliced_bytes(batch: &RecordBatch) -> usize {
    batch
        .columns()
        .iter()
        .map(|column| {
            let data = column.to_data();
            data.get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
        })
        .sum()
}

/// Cuts a batch so that each piece stays below `bytes_max`, as far as rows allow.
fn cut(batch: RecordBatch, bytes_max: usize, pieces: &mut Vec<RecordBatch>) {
    let rows = batch.num_rows();
    let bytes = sliced_bytes(&batch);
    if bytes <= bytes_max || rows <= 1 {
        pieces.push(batch);
        return;
    }
    let count = bytes.div_ceil(bytes_max).min(rows);
    let step = rows.div_ceil(count);
    let mut offset = 0;
    while offset < rows {
        let length = step.min(rows - offset);
        let piece = batch.slice(offset, length);
        offset += length;
        // Rows of very different size: look again.
        if length > 1 && sliced_bytes(&piece) > bytes_max {
            cut(piece, bytes_max, pieces);
        } else {
            pieces.push(piece);
        }
    }
}

/// Gives a batch the announced schema; only names, nullability and metadata may have differed.
fn conform(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if Arc::ptr_eq(batch.schema_ref(), schema) || batch.schema_ref() == schema {
        return Ok(batch);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), batch.columns().to_vec(), &options)
        .map_err(|error| Error::Internal(format!("a batch does not fit the announced schema: {error}")))
}

/// Ends a result from outside.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Sender<bool>);

impl Stop {
    pub(crate) fn new() -> Stop {
        Stop(watch::Sender::new(false))
    }

    pub(crate) fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Whether both end the same result.
    pub(crate) fn is(&self, other: &Stop) -> bool {
        self.0.same_channel(&other.0)
    }

    async fn stopped(&self) {
        let mut receiver = self.0.subscribe();
        // The sender lives in `self`, so that waiting cannot fail.
        let _ = receiver.wait_for(|stopped| *stopped).await;
    }
}

/// What a result needs besides its rows.
pub(crate) struct Outgoing {
    pub(crate) shape: Shape,
    /// The schema message, where it was encoded before.
    pub(crate) header: Option<Bytes>,
    /// The statement, for error messages.
    pub(crate) statement: Option<Arc<str>>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) stop: Stop,
    pub(crate) counters: Arc<Counters>,
    /// Dropped when the result ends or is abandoned.
    pub(crate) guard: Box<dyn std::any::Any + Send>,
}

/// The rows of a result that came within a moment.
pub(crate) enum Ready {
    /// All of them, and they are few.
    All(Vec<RecordBatch>),
    /// More is to come, or too much.
    Part(sql::BatchStream),
}

/// Looks whether a result is small and quick. An error is left for the stream to report.
pub(crate) async fn ready(mut batches: sql::BatchStream) -> Ready {
    let mut seen = Vec::new();
    let mut bytes = 0;
    let until = Instant::now() + SMALL_WAIT;
    loop {
        match tokio::time::timeout_at(until, batches.next()).await {
            Ok(Some(Ok(batch))) => {
                bytes += sliced_bytes(&batch);
                seen.push(Ok(batch));
                if bytes <= SMALL_BYTES && seen.len() <= SMALL_BATCHES {
                    continue;
                }
            }
            Ok(Some(Err(error))) => seen.push(Err(error)),
            Ok(None) => return Ready::All(seen.into_iter().flatten().collect()),
            Err(_) if seen.is_empty() => return Ready::Part(batches),
            Err(_) => {}
        }
        return Ready::Part(futures::stream::iter(seen).chain(batches).boxed());
    }
}

/// The Flight messages of a small result.
pub(crate) fn small(
    schema: &SchemaRef,
    batches: Vec<RecordBatch>,
    header: Option<Bytes>,
    counters: &Arc<Counters>,
) -> Result<MessageStream> {
    let mut encoder = Encoder::new();
    let mut messages = vec![header_message(header.unwrap_or_else(|| schema_header(schema)))];
    for batch in batches {
        if batch.num_rows() > 0 {
            let batch = conform(batch, schema)?;
            counters.rows_sent.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
            messages.extend(encoder.batch_messages(&batch)?);
        }
    }
    let bytes: usize = messages.iter().map(|message| message.data_body.len()).sum();
    counters.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    counters.streams.fetch_add(1, Ordering::Relaxed);
    Ok(MessageStream { source: Source::Small(messages.into_iter()), _guard: Box::new(counters.active()) })
}

/// The Flight messages of a result.
pub(crate) fn messages(schema: SchemaRef, batches: sql::BatchStream, out: Outgoing) -> MessageStream {
    let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD);
    let Outgoing { shape, header, statement, deadline, stop, counters, guard } = out;
    counters.streams.fetch_add(1, Ordering::Relaxed);
    let active = counters.active();
    let task = tokio::spawn(async move {
        let failed = sender.clone();
        let header = header.unwrap_or_else(|| schema_header(&schema));
        let pump = pump(schema, header, batches, shape, &statement, &counters, &sender);
        let ended = std::panic::AssertUnwindSafe(pump).catch_unwind();
        let error = tokio::select! {
            biased;
            () = stop.stopped() => Some(Error::Cancelled),
            () = sleep_until(deadline) => Some(Error::DeadlineExceeded),
            ended = ended => match ended {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error),
                Err(_) => Some(Error::Internal("the query panicked".to_owned())),
            },
        };
        if let Some(error) = error {
            // Nobody may be there to read it.
            let _ = failed.send(Err(error.into())).await;
        }
    });
    MessageStream { source: Source::Task(receiver, task.abort_handle()), _guard: Box::new((active, guard)) }
}

pub(crate) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

type Sender = mpsc::Sender<Result<FlightData, Status>>;

/// Sends everything; an error of the channel means that the client has gone, which ends the work quietly.
async fn pump(
    schema: SchemaRef,
    header: Bytes,
    mut batches: sql::BatchStream,
    shape: Shape,
    statement: &Option<Arc<str>>,
    counters: &Counters,
    sender: &Sender,
) -> Result<()> {
    let mut encoder = Encoder::new();
    if sender.send(Ok(header_message(header))).await.is_err() {
        return Ok(());
    }
    let with_statement = |error: sql::Error| match statement {
        Some(statement) => Error::of_statement(error, statement),
        None => error.into(),
    };
    let mut gathered: Vec<RecordBatch> = Vec::new();
    let mut gathered_bytes = 0;
    let mut first = true;
    loop {
        // While something is gathered, only look whether more is ready: nobody waits for a batch to fill.
        let next = if gathered.is_empty() { Some(batches.next().await) } else { batches.next().now_or_never() };
        let (flush, end) = match next {
            Some(Some(batch)) => {
                let batch = conform(batch.map_err(with_statement)?, &schema)?;
                if batch.num_rows() == 0 {
                    continue;
                }
                gathered_bytes += sliced_bytes(&batch);
                gathered.push(batch);
                (first || gathered_bytes >= shape.bytes_min, false)
            }
            Some(None) => (true, true),
            None => (true, false),
        };
        if flush && !gathered.is_empty() {
            let batch = match gathered.len() {
                1 => gathered.remove(0),
                _ => concat_batches(&schema, &gathered)?,
            };
            gathered.clear();
            gathered_bytes = 0;
            first = false;
            let mut pieces = Vec::with_capacity(1);
            cut(batch, shape.bytes_max, &mut pieces);
            for piece in pieces {
                counters.rows_sent.fetch_add(piece.num_rows() as u64, Ordering::Relaxed);
                for message in encoder.batch_messages(&piece)? {
                    counters.bytes_sent.fetch_add(message.data_body.len() as u64, Ordering::Relaxed);
                    if sender.send(Ok(message)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        if end {
            return Ok(());
        }
    }
}

/// The messages of one result; dropping it stops the plan.
pub(crate) struct MessageStream {
    source: Source,
    _guard: Box<dyn std::any::Any + Send>,
}

enum Source {
    Small(std::vec::IntoIter<FlightData>),
    Task(mpsc::Receiver<Result<FlightData, Status>>, AbortHandle),
}

impl Stream for MessageStream {
    type Item = Result<FlightData, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.source {
            Source::Small(messages) => Poll::Ready(messages.next().map(Ok)),
            Source::Task(receiver, _) => receiver.poll_recv(context),
        }
    }
}

impl Drop for MessageStream {
    fn drop(&mut self) {
        if let Source::Task(_, task) = &self.source {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field};
    use arrow_flight::decode::FlightRecordBatchStream;
    use arrow_flight::error::FlightError;
    use futures::TryStreamExt;

    use super::*;

    fn numbers(range: std::ops::Range<i64>) -> RecordBatch {
        RecordBatch::try_from_iter(vec![("n", Arc::new(Int64Array::from_iter_values(range)) as ArrayRef)]).unwrap()
    }

    fn outgoing(shape: Shape) -> Outgoing {
        Outgoing {
            shape,
            header: None,
            statement: None,
            deadline: None,
            stop: Stop::new(),
            counters: Arc::default(),
            guard: Box::new(()),
        }
    }

    async fn read(stream: MessageStream) -> Result<Vec<RecordBatch>, FlightError> {
        FlightRecordBatchStream::new_from_flight_data(stream.map_err(FlightError::from)).try_collect().await
    }

    fn values(batches: &[RecordBatch]) -> Vec<i64> {
        batches
            .iter()
            .flat_map(|batch| batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec())
            .collect()
    }

    #[tokio::test]
    async fn small_batches_are_gathered_in_order() {
        let parts: Vec<RecordBatch> = (0..100).map(|n| numbers(n * 10..n * 10 + 10)).collect();
        let schema = parts[0].schema();
        let stream = futures::stream::iter(parts.into_iter().map(Ok)).boxed();
        let shape = Shape { bytes_max: 1 << 20, bytes_min: 2000 };
        let batches = read(messages(schema, stream, outgoing(shape))).await.unwrap();
        assert_eq!(values(&batches), (0..1000).collect::<Vec<_>>());
        assert_eq!(batches[0].num_rows(), 10, "the first batch leaves at once");
        assert!(batches.len() < 10, "{} batches", batches.len());
    }

    #[tokio::test]
    async fn large_batches_are_cut_by_size() {
        let shape = Shape { bytes_max: 8000, bytes_min: 1 };
        let schema = numbers(0..1).schema();
        let stream = futures::stream::iter([Ok(numbers(0..100_000))]).boxed();
        let batches = read(messages(Arc::clone(&schema), stream, outgoing(shape))).await.unwrap();
        assert_eq!(values(&batches), (0..100_000).collect::<Vec<_>>());
        assert!(batches.iter().all(|batch| batch.num_rows() * 8 <= 8000));
        // A small slice of a large batch is not cut to crumbs.
        let stream = futures::stream::iter([Ok(numbers(0..100_000).slice(500, 900))]).boxed();
        assert_eq!(read(messages(schema, stream, outgoing(shape))).await.unwrap().len(), 1);
        // One huge row among small ones stands alone.
        let mut texts = vec!["x".to_owned(); 50];
        texts[20] = "y".repeat(20_000);
        let batch = RecordBatch::try_from_iter(vec![("s", Arc::new(StringArray::from(texts)) as ArrayRef)]).unwrap();
        let mut pieces = Vec::new();
        cut(batch, 8000, &mut pieces);
        assert_eq!(pieces.iter().map(RecordBatch::num_rows).sum::<usize>(), 50);
        assert!(pieces.iter().all(|piece| piece.num_rows() == 1 || sliced_bytes(piece) <= 8000));
    }

    #[tokio::test]
    async fn a_batch_must_fit_the_announced_schema() {
        let announced = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let stream = futures::stream::iter([Ok(numbers(0..3))]).boxed();
        let batches = read(messages(Arc::clone(&announced), stream, outgoing(Shape::default()))).await.unwrap();
        assert_eq!(batches[0].schema(), announced);
        let other = Arc::new(Schema::new(vec![Field::new("n", DataType::Utf8, true)]));
        let stream = futures::stream::iter([Ok(numbers(0..3))]).boxed();
        assert!(read(messages(other, stream, outgoing(Shape::default()))).await.is_err());
    }

    #[tokio::test]
    async fn an_empty_result_has_a_schema() {
        let schema = numbers(0..1).schema();
        let stream = futures::stream::iter([Ok(numbers(0..0))]).boxed();
        let sent: Vec<_> = messages(schema, stream, outgoing(Shape::default())).collect().await;
        assert_eq!(sent.len(), 1);
    }

    #[tokio::test]
    async fn a_result_without_columns_keeps_its_rows() {
        let schema = Arc::new(Schema::empty());
        let options = RecordBatchOptions::new().with_row_count(Some(3));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), vec![], &options).unwrap();
        let stream = futures::stream::iter([Ok(batch)]).boxed();
        let batches = read(messages(schema, stream, outgoing(Shape::default()))).await.unwrap();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
    }

    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn dropping_the_result_stops_the_plan() {
        let produced = Arc::new(AtomicUsize::new(0));
        let dropped = Arc::new(AtomicUsize::new(0));
        let state = (Arc::clone(&produced), Dropped(Arc::clone(&dropped)));
        let endless = futures::stream::unfold(state, |(produced, guard)| async move {
            produced.fetch_add(1, Ordering::SeqCst);
            Some((Ok(numbers(0..200_000)), (produced, guard)))
        });
        let mut stream = messages(numbers(0..1).schema(), endless.boxed(), outgoing(Shape::default()));
        for _ in 0..3 {
            stream.next().await.unwrap().unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(produced.load(Ordering::SeqCst) < 10, "a slow client slows the plan");
        drop(stream);
        for _ in 0..100 {
            if dropped.load(Ordering::SeqCst) == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the plan goes on");
    }

    #[tokio::test]
    async fn small_results_need_no_task() {
        let of = async |parts: Vec<sql::Result<RecordBatch>>| ready(futures::stream::iter(parts).boxed()).await;
        let Ready::All(batches) = of(vec![Ok(numbers(0..3)), Ok(numbers(3..5))]).await else { panic!("it is there") };
        let schema = numbers(0..1).schema();
        let counters = Arc::<Counters>::default();
        let stream = small(&schema, batches, None, &counters).unwrap();
        assert_eq!(counters.active_streams.load(Ordering::Relaxed), 1);
        assert_eq!(values(&read(stream).await.unwrap()), [0, 1, 2, 3, 4]);
        assert_eq!(counters.active_streams.load(Ordering::Relaxed), 0);
        assert_eq!(counters.rows_sent.load(Ordering::Relaxed), 5);

        // What is large, long or has to be waited for comes out whole in the other way.
        let large = || vec![Ok(numbers(0..5000)), Ok(numbers(5000..10_000)), Ok(numbers(10_000..10_001))];
        let many = || (0..20).map(|n| Ok(numbers(n..n + 1))).collect::<Vec<_>>();
        for (parts, count) in [(large(), 10_001), (many(), 20)] {
            let Ready::Part(rest) = of(parts).await else { panic!("too much for one go") };
            let batches = read(messages(Arc::clone(&schema), rest, outgoing(Shape::default()))).await.unwrap();
            assert_eq!(values(&batches), (0..count).collect::<Vec<_>>());
        }
        let slow = futures::stream::once(async { Ok(numbers(0..2)) }).chain(futures::stream::once(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(numbers(2..4))
        }));
        let Ready::Part(rest) = ready(slow.boxed()).await else { panic!("not there yet") };
        let batches = read(messages(Arc::clone(&schema), rest, outgoing(Shape::default()))).await.unwrap();
        assert_eq!(values(&batches), [0, 1, 2, 3]);
        let Ready::Part(rest) = of(vec![Ok(numbers(0..1)), Err(sql::Error::internal("boom"))]).await else {
            panic!("an error is the stream's")
        };
        assert!(read(messages(schema, rest, outgoing(Shape::default()))).await.is_err());
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let stream = futures::stream::iter(0..3).map(|n| if n == 2 { panic!("plan") } else { Ok(numbers(0..2)) });
        let result = read(messages(numbers(0..1).schema(), stream.boxed(), outgoing(Shape::default()))).await;
        std::panic::set_hook(quiet);
        assert!(result.is_err());
    }

    #[tokio::test]
    async fn stops_and_deadlines() {
        let never = || futures::stream::pending().boxed();
        let out = outgoing(Shape::default());
        let stop = out.stop.clone();
        let mut stream = messages(numbers(0..1).schema(), never(), out);
        stream.next().await.unwrap().unwrap();
        stop.stop();
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), tonic::Code::Cancelled);
        assert!(stream.next().await.is_none());

        let mut out = outgoing(Shape::default());
        out.deadline = Some(Instant::now() + Duration::from_millis(20));
        let mut stream = messages(numbers(0..1).schema(), never(), out);
        stream.next().await.unwrap().unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), tonic::Code::DeadlineExceeded);
    }
}
