# find_package(moxin_vlm) gives two targets:
#   moxin_vlm::moxin_vlm  the shared library
#   moxin_vlm::static     the static library, with all that it needs
cmake_minimum_required(VERSION 3.16)

get_filename_component(_moxin_vlm_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

if(NOT CMAKE_SYSTEM_NAME STREQUAL "@SYSTEM@")
  set(moxin_vlm_FOUND FALSE)
  set(moxin_vlm_NOT_FOUND_MESSAGE "this moxin_vlm was built for @SYSTEM@, not for ${CMAKE_SYSTEM_NAME}")
  return()
endif()

if(NOT TARGET moxin_vlm::moxin_vlm)
  add_library(moxin_vlm::moxin_vlm SHARED IMPORTED)
  set_target_properties(moxin_vlm::moxin_vlm PROPERTIES
    IMPORTED_LOCATION "${_moxin_vlm_prefix}/lib/@SHARED_FILE@"
    IMPORTED_SONAME "@SHARED_NAME@"
    INTERFACE_INCLUDE_DIRECTORIES "${_moxin_vlm_prefix}/include")
endif()

if(NOT TARGET moxin_vlm::static)
  add_library(moxin_vlm::static STATIC IMPORTED)
  set_target_properties(moxin_vlm::static PROPERTIES
    IMPORTED_LOCATION "${_moxin_vlm_prefix}/lib/libmoxin_vlm.a"
    INTERFACE_INCLUDE_DIRECTORIES "${_moxin_vlm_prefix}/include"
    INTERFACE_LINK_LIBRARIES "@SYSTEM_LIBRARIES@")
  if(NOT "@MLX_FILE@" STREQUAL "")
    add_library(moxin_vlm::mlx SHARED IMPORTED)
    set_target_properties(moxin_vlm::mlx PROPERTIES
      IMPORTED_LOCATION "${_moxin_vlm_prefix}/lib/@MLX_FILE@"
      IMPORTED_SONAME "libmlx.so")
    set_property(TARGET moxin_vlm::static APPEND PROPERTY INTERFACE_LINK_LIBRARIES moxin_vlm::mlx)
  endif()
endif()

unset(_moxin_vlm_prefix)
