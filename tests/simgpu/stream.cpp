/* Streams are queues; nothing runs before the host waits. Then any stream's head that waits for no event may be next: which, is drawn. Half of
 * the time a wait is as lazy as it can be (only what it needs is executed), else others run first, even to their ends. */
#include "simgpu.h"

#include <algorithm>
#include <deque>
#include <pthread.h>
#include <sched.h>
#include <vector>

namespace simgpu {

struct item {
  std::string what;
  std::function<void()> work; // neither: waits for, or completes, an event's record
  std::function<bool()> polled;
  event *subject = nullptr;
  uint64_t record = 0;
  bool completes = false;
};
struct stream {
  std::deque<item> queue;
  bool destroyed = false;
};
struct event {
  uint64_t recorded = 0, completed = 0; // numbers of records
  bool destroyed = false;
};

namespace {
std::vector<stream *> streams;
pthread_t owner; // the thread that works for the device
bool owned = false;

bool ready(const stream *s) {
  if (s->queue.empty()) return false;
  const item &head = s->queue.front();
  return head.work || head.polled || head.completes || head.subject->completed >= head.record;
}

/* Deletes a destroyed event that no queue names. */
void forget_event(event *e) {
  if (!e->destroyed) return;
  for (const stream *s : streams)
    for (const item &i : s->queue)
      if (i.subject == e) return;
  delete e;
}

/* What is polled stays where it is until it is done. */
void step(stream *s) {
  if (s->queue.front().polled && !s->queue.front().polled()) {
    sched_yield();
    return;
  }
  item head = std::move(s->queue.front());
  s->queue.pop_front();
  if (head.work) {
    head.work();
  } else if (head.completes) {
    head.subject->completed = std::max(head.subject->completed, head.record);
  }
  if (head.subject) forget_event(head.subject);
  if (s->destroyed && s->queue.empty()) {
    streams.erase(std::find(streams.begin(), streams.end(), s));
    delete s;
  }
}

/* One step of some stream; false when none can go on. */
bool step_any() {
  std::vector<stream *> able;
  for (stream *s : streams)
    if (ready(s)) able.push_back(s);
  if (able.empty()) return false;
  step(able[random_below(able.size())]);
  return true;
}

stream *recorder(const event *e, uint64_t record) {
  for (stream *s : streams)
    for (const item &i : s->queue)
      if (i.completes && i.subject == e && i.record == record) return s;
  return nullptr;
}

/* Brings the head of s to execution with nothing more than it needs. */
void force(stream *s) {
  while (!ready(s)) {
    const item &head = s->queue.front();
    stream *other = recorder(head.subject, head.record);
    if (!other || other == s) fault("deadlock: a stream waits for an event that nothing will complete");
    force(other);
  }
  step(s);
}

template <class Done> void run_until(Done done, const std::function<stream *()> &needed) {
  if (done()) return;
  device_access access; // once for all that runs: the host does nothing meanwhile
  const bool lazy = random_below(2) == 0;
  if (!lazy)
    for (uint64_t n = random_below(64); n > 0 && step_any(); n--) {}
  while (!done()) force(needed());
}
} // namespace

stream *stream_create() {
  if (!owned) {
    owner = pthread_self();
    owned = true;
    report_at_exit();
  }
  streams.push_back(new stream);
  return streams.back();
}
void stream_destroy(stream *s) {
  s->destroyed = true;
  if (!s->queue.empty()) return;
  streams.erase(std::find(streams.begin(), streams.end(), s));
  delete s;
}
void stream_push(stream *s, std::string what, std::function<void()> work) {
  if (counting_only) return;
  item i;
  i.what = std::move(what);
  i.work = std::move(work);
  s->queue.push_back(std::move(i));
}

void stream_push_polled(stream *s, std::string what, std::function<bool()> work) {
  item i;
  i.what = std::move(what);
  i.polled = std::move(work);
  s->queue.push_back(std::move(i));
}

event *event_create() {
  return new event;
}
void event_destroy(event *e) { // waits and records may still stand in queues: then it goes with the last of them
  e->destroyed = true;
  forget_event(e);
}
void event_record(event *e, stream *s) {
  item i;
  i.what = "event record";
  i.subject = e;
  i.record = ++e->recorded;
  i.completes = true;
  s->queue.push_back(std::move(i));
}
void stream_wait(stream *s, event *e) {
  counted.event_waits++;
  item i;
  i.what = "event wait";
  i.subject = e;
  i.record = e->recorded; // of an event never recorded: passes at once, as in CUDA
  s->queue.push_back(std::move(i));
}

bool event_complete(const event *e) {
  return e->completed >= e->recorded;
}
bool stream_empty(const stream *s) {
  return s->queue.empty();
}

void synchronize_event(event *e) {
  counted.synchronizations++;
  const uint64_t record = e->recorded;
  run_until([&] { return e->completed >= record; }, [&] { return recorder(e, record); });
}
void synchronize_stream(stream *s) {
  counted.synchronizations++;
  run_until([&] { return s->queue.empty(); }, [&] { return s; });
}
void synchronize_device() {
  counted.synchronizations++;
  {
    device_access access;
    while (step_any()) {}
  }
  for (stream *s : streams)
    if (!s->queue.empty()) fault("deadlock: a stream waits for an event that nothing will complete");
}
bool device_works_here() {
  return owned && pthread_equal(owner, pthread_self());
}
void advance() {
  bool any = false;
  for (const stream *s : streams) any |= ready(s);
  if (!any) {
    sched_yield();
    return;
  }
  device_access access;
  step_any();
}
void drift() {
  device_access access;
  for (uint64_t n = random_below(3); n > 0 && step_any(); n--) {}
}

} // namespace simgpu
