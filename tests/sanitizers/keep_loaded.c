/* Preloaded under a sanitizer: libraries stay loaded to the end. Open MPI unloads its plug-ins in MPI_Finalize; the stacks of
 * what they have allocated would then have no names, and no suppression would fit. */
int dlclose(void *library);

int dlclose(void *library) {
  (void)library;
  return 0;
}
