/* The communicator of a program that runs alone: nothing is started or counted, and only an exchange moves anything. */
#include "comm.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void self_close(spt_comm **comm_p) {
  free(*comm_p);
  *comm_p = NULL;
}

/* A sum over one rank is the buffer itself; NULL stands for a complete request. */
static spt_status self_all_reduce_start(spt_comm *comm, float *buffer, int64_t count, spt_request **request_p) {
  (void)comm, (void)buffer, (void)count;
  *request_p = NULL;
  return SPT_OK;
}

static spt_status self_runs_start(spt_comm *comm, float *buffer, const int64_t *cuts, spt_request **request_p) {
  (void)comm, (void)buffer, (void)cuts;
  *request_p = NULL;
  return SPT_OK;
}

static spt_status self_all_gather_start(spt_comm *comm, void *buffer, size_t element, const int64_t *cuts, spt_request **request_p) {
  (void)comm, (void)buffer, (void)element, (void)cuts;
  *request_p = NULL;
  return SPT_OK;
}

static spt_status self_exchange_start(spt_comm *comm, const float *buffer, const int64_t *cuts, const bool *senders,
                                      float *received_p, spt_request **request_p) {
  (void)comm;
  if (senders[0] && cuts[1] > cuts[0]) memcpy(received_p, buffer, (size_t)(cuts[1] - cuts[0]) * sizeof *received_p);
  *request_p = NULL;
  return SPT_OK;
}

static spt_status self_test(spt_comm *comm, spt_request **request_p, bool *done_p) {
  (void)comm, (void)request_p;
  *done_p = true;
  return SPT_OK;
}

static spt_status self_wait(spt_comm *comm, spt_request **request_p) {
  (void)comm, (void)request_p;
  return SPT_OK;
}

static spt_status self_progress(spt_comm *comm) {
  (void)comm;
  return SPT_OK;
}

static spt_status self_reduce_double(spt_comm *comm, double *values, int count, spt_reduce_op op) {
  (void)comm, (void)values, (void)count, (void)op;
  return SPT_OK;
}

static spt_status self_broadcast(spt_comm *comm, void *bytes, size_t count, int root) {
  (void)comm, (void)bytes, (void)count, (void)root;
  return SPT_OK;
}

static spt_status self_send(spt_comm *comm, const void *bytes, size_t count, int to, int tag) {
  (void)comm, (void)bytes, (void)count;
  return SPT_FAIL(SPT_ERR_RESOURCE, "send to rank %d (tag %d): this process runs alone; start it under mpirun", to,
                  tag);
}

static spt_status self_receive(spt_comm *comm, void *bytes, size_t count, int from, int tag) {
  (void)comm, (void)bytes, (void)count;
  return SPT_FAIL(SPT_ERR_RESOURCE, "receive from rank %d (tag %d): this process runs alone; start it under mpirun",
                  from, tag);
}

static void self_abort(spt_comm *comm, int code) {
  if (comm->before_abort) comm->before_abort();
  _Exit(code);
}

static const spt_comm_ops self_ops = {
    .name = "self",
    .close = self_close,
    .all_reduce_start = self_all_reduce_start,
    .reduce_scatter_start = self_runs_start,
    .all_gather_start = self_all_gather_start,
    .exchange_start = self_exchange_start,
    .test = self_test,
    .wait = self_wait,
    .progress = self_progress,
    .reduce_double = self_reduce_double,
    .broadcast = self_broadcast,
    .barrier = self_progress,
    .send = self_send,
    .receive = self_receive,
    .abort = self_abort,
};

spt_status spt_comm_self_open(spt_comm **comm_p) {
  spt_comm *comm = calloc(1, sizeof *comm);
  if (!comm) return SPT_FAIL(SPT_ERR_RESOURCE, "communicator: out of memory");
  comm->ops = &self_ops;
  comm->size = comm->local_size = comm->cpu_sharers = 1;
  comm->threaded = true;
  if (gethostname(comm->host, sizeof comm->host - 1) != 0) comm->host[0] = '\0';
  *comm_p = comm;
  return SPT_OK;
}
