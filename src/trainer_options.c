/* The trainer's command line. */
#include "trainer.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void trainer_print_help(void) {
  puts("Usage: spectron-dist [OPTION]... JOB.toml\n"
       "Trains a natively low-rank LLaMA transformer with Spectron; run it under mpirun or srun for more ranks.\n"
       "\n"
       "  --resume[=PATH]       go on from the newest intact checkpoint of the output folder (or from PATH);\n"
       "                        starts fresh where there is none\n"
       "  --init-from CKPT      start a new run from a checkpoint's parameters; with --resume, only where\n"
       "                        there is nothing to resume\n"
       "  --set TABLE.KEY=VALUE override a key of the job file; may be repeated\n"
       "  --dry-run [--ranks N] print parameters, FLOPs per step and memory per rank, and stop\n"
       "    --presets           instead, memory of every preset with the job's other keys, and the largest\n"
       "                        micro-batch that a GPU of 80 GB takes; --backend cuda needs no GPU for either\n"
       "  --backend cpu|cuda    as --set device.backend=…\n"
       "  --threads N           OpenMP threads per rank, as --set device.threads=…\n"
       "  --profile             at the end, the share of step time by phase, and by op and pass, with FLOP/s and\n"
       "                        GB/s of each against what this machine reached at the start, a large matrix\n"
       "                        product and large arrays; of rank 0, the run's first step left out\n"
       "  --replay K            recompute the steps up to K from --resume=PATH and look into the last two: what each op\n"
       "                        wrote, which was the first not finite; no validation, no save; wants a run.output of its\n"
       "                        own (spectron replay does all that)\n"
       "  --help, --version\n"
       "\n"
       "Example: mpirun -np 2 --bind-to none spectron-dist --set optimizer.lr=0.02 configs/quickstart.toml\n"
       "\n"
       "Exit codes:");
#define PRINT_CODE(name, code, text) printf("  %2d  %s\n", code, text);
  SPT_STATUS_TABLE(PRINT_CODE)
#undef PRINT_CODE
  puts("USR1 to any rank, mpirun or srun saves at the next step boundary and exits with 75.");
}

static spt_status add_set(trainer_options *options, const char *set) {
  if (options->set_count == TRAINER_SETS_MAX)
    return SPT_FAIL(SPT_ERR_USAGE, "--set %s: at most %d settings; write them into the job file", set,
                    TRAINER_SETS_MAX);
  options->sets[options->set_count++] = set;
  return SPT_OK;
}

/* "--backend X" is "--set device.backend=X"; the text lives as long as the program. */
static spt_status add_device_set(trainer_options *options, const char *key, const char *value) {
  const size_t size = strlen(key) + strlen(value) + 2;
  char *set = malloc(size);
  if (!set) return SPT_FAIL(SPT_ERR_RESOURCE, "out of memory reading the command line");
  snprintf(set, size, "%s=%s", key, value);
  return add_set(options, set);
}

spt_status trainer_options_parse(int argc, char **argv, trainer_options *options_p) {
  static const struct option table[] = {{"resume", optional_argument, NULL, 'r'},
                                        {"init-from", required_argument, NULL, 'i'},
                                        {"set", required_argument, NULL, 's'},
                                        {"dry-run", no_argument, NULL, 'd'},
                                        {"presets", no_argument, NULL, 'm'},
                                        {"ranks", required_argument, NULL, 'n'},
                                        {"backend", required_argument, NULL, 'b'},
                                        {"threads", required_argument, NULL, 't'},
                                        {"profile", no_argument, NULL, 'p'},
                                        {"replay", required_argument, NULL, 'y'},
                                        {"help", no_argument, NULL, 'h'},
                                        {"version", no_argument, NULL, 'v'},
                                        {NULL, 0, NULL, 0}};
  *options_p = (trainer_options){0};
  opterr = 0;
  optind = 1;
  for (int option; (option = getopt_long(argc, argv, ":h", table, NULL)) != -1;) {
    char *end;
    switch (option) {
    case 'r':
      options_p->resume = true;
      if (optarg && !*optarg)
        return SPT_FAIL(SPT_ERR_USAGE, "--resume= names no checkpoint; say --resume, or --resume=PATH");
      if (optarg && strcmp(optarg, "auto") != 0) options_p->resume_path = optarg;
      break;
    case 'i': options_p->init_from = optarg; break;
    case 's': SPT_TRY(add_set(options_p, optarg)); break;
    case 'd': options_p->dry_run = true; break;
    case 'm': options_p->presets = true; break;
    case 'n': {
      const long ranks = strtol(optarg, &end, 10);
      if (*end || ranks < 1 || ranks > 65536)
        return SPT_FAIL(SPT_ERR_USAGE, "--ranks %s: must be a number from 1 to 65536", optarg);
      options_p->ranks = (int)ranks;
      break;
    }
    case 'b': SPT_TRY(add_device_set(options_p, "device.backend", optarg)); break;
    case 't': SPT_TRY(add_device_set(options_p, "device.threads", optarg)); break;
    case 'p': options_p->profile = true; break;
    case 'y':
      options_p->replay = strtoll(optarg, &end, 10);
      if (*end || options_p->replay < 1) return SPT_FAIL(SPT_ERR_USAGE, "--replay %s: must be a step, from 1 on", optarg);
      break;
    case 'h': options_p->help = true; return SPT_OK;
    case 'v': options_p->version = true; return SPT_OK;
    case ':': return SPT_FAIL(SPT_ERR_USAGE, "%s needs a value; see spectron-dist --help", argv[optind - 1]);
    default: return SPT_FAIL(SPT_ERR_USAGE, "unknown option %s; see spectron-dist --help", argv[optind - 1]);
    }
  }
  if (optind == argc) return SPT_FAIL(SPT_ERR_USAGE, "no job file given; usage: spectron-dist [OPTION]... JOB.toml");
  if (optind + 1 < argc)
    return SPT_FAIL(SPT_ERR_USAGE, "more than one job file: %s and %s", argv[optind], argv[optind + 1]);
  if (options_p->ranks && !options_p->dry_run)
    return SPT_FAIL(SPT_ERR_USAGE, "--ranks belongs to --dry-run; to train on %d ranks: mpirun -np %d",
                    options_p->ranks, options_p->ranks);
  if (options_p->presets && !options_p->dry_run) return SPT_FAIL(SPT_ERR_USAGE, "--presets belongs to --dry-run");
  options_p->job = argv[optind];
  return SPT_OK;
}
